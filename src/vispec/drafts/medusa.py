"""Medusa's heads (arXiv 2401.10774): several tokens ahead, all from one feature of the target.

Head `k` reads the target's last hidden state and guesses the token `k` places behind the one that
the target itself says there. The heads know nothing of each other's guesses; their likeliest
combinations make the tree.

Shapes: `b` requests, `k` heads, `d` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts.base import DraftNoise, numbers_of, placing_misfits, size_misfits
from vispec.drafts.growth import grow
from vispec.errors import DraftMismatchError
from vispec.targets.base import Prefill, Prompt, Target


@dataclass(frozen=True)
class MedusaConfig:
    """The heads' geometry.

    Attributes:
        heads: how many.
        layers: residual layers of each.
        own_heads: an LM head of its own for each; else they share the target's.
    """

    hidden_size: int
    vocab_size: int
    heads: int = 4
    layers: int = 1
    own_heads: bool = False


class _Head(nn.Module):
    """Residual layers, which start as the identity, and perhaps an LM head."""

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__()
        d = config.hidden_size
        layers = [nn.Linear(d, d) for _ in range(config.layers)]
        for layer in layers:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.lm_head = nn.Linear(d, config.vocab_size, bias=False) if config.own_heads else None

    def forward(self, feature: Tensor, head: nn.Module) -> Tensor:
        for layer in self.layers:
            feature = feature + F.silu(layer(feature))
        return (self.lm_head or head)(feature)


class MedusaDraft(nn.Module):
    """Heads that propose.

    Args:
        config: geometry.
        name: what messages call it.
    """

    trained_for: str | None = None
    """The target that its checkpoint names, where it names one."""

    def __init__(self, config: MedusaConfig, name: str = "medusa") -> None:
        super().__init__()
        self.config, self._name = config, name
        self.heads = nn.ModuleList(_Head(config) for _ in range(config.heads))

    @property
    def name(self) -> str:
        return self._name

    @property
    def dtype(self) -> torch.dtype:
        return numbers_of(self).dtype

    def forward(self, feature: Tensor, head: nn.Module) -> Tensor:
        """`[…, k, V]` logits of every head from last hidden states `[…, d]`.

        Args:
            head: the target's LM head.
        """
        return torch.stack([own(feature, head) for own in self.heads], -2)

    def feature_layers(self, target: Target) -> Sequence[int]:
        return ()

    def check(self, target: Target) -> None:
        c = self.config
        problems = size_misfits(c.hidden_size, c.vocab_size, target)
        problems += placing_misfits(self, target)
        if problems:
            raise DraftMismatchError(self.name, target.name, problems)

    def compile_passes(self) -> None:
        """A few matrices a cycle are not worth it."""

    def session(self, target: Target, slots: int, capacity: int) -> MedusaSession:
        return MedusaSession(self, target, slots)


class MedusaSession:
    """The last feature of every request."""

    def __init__(self, draft: MedusaDraft, target: Target, slots: int) -> None:
        self.draft, self.head = draft, target.head
        self.feature = torch.zeros(
            slots, draft.config.hidden_size, dtype=draft.dtype, device=target.device
        )

    def begin(self, slot: int, prompt: Prompt, prefill: Prefill, token: int) -> None:
        self.feature[slot] = prefill.features[-1]

    def propose(
        self, roots: Tensor, shape: TreeShape | SampledShape, noise: DraftNoise | None
    ) -> Tree:
        logits = self.draft(self.feature[: len(roots)], self.head)
        count, level = self.draft.config.heads, 0

        def expand(token: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
            nonlocal level
            level += 1
            # A sampled tree has a shape of its own; below the last head its guess is as good.
            guess = logits[:, min(level, count - 1), None]
            return guess.expand(-1, token.shape[1], -1)

        if isinstance(shape, TreeShape):
            shape = replace(shape, depth=min(shape.depth, count))
        return grow(roots, logits[:, 0], expand, shape, noise)

    def advance(
        self, nodes: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], features: Tensor
    ) -> None:
        last = torch.tensor([row[-1] for row in nodes], device=features.device)
        rows = torch.arange(len(nodes), device=features.device)
        self.feature[: len(nodes)] = features[rows, last].to(self.feature.dtype)

    def move(self, source: int, target: int) -> None:
        self.feature[target] = self.feature[source]
