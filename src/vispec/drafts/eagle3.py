"""The draft of EAGLE-3 (arXiv 2503.01840): several layers' features, tokens of its own.

It reads a low, a middle and a high layer of the target, fused by one projection, and guesses
tokens, not features: its guesses have a norm and an LM head of their own, often over a part of the
vocabulary. Variations that published checkpoints differ in are facts of `Eagle3Config`.

Shapes: `b` requests, `n` rows, `d` hidden size, `k` layers read, `e` the target's hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vispec.adapters.base import Adapter
from vispec.decoding.cache import SlotCache
from vispec.drafts.base import placing_misfits, shared_misfits
from vispec.drafts.layers import Attention, Mlp, Rotary, Rotation
from vispec.drafts.sequential import SequentialDraft
from vispec.errors import SettingsError
from vispec.targets.base import Target


@dataclass(frozen=True)
class Eagle3Config:
    """The draft's geometry, under the names of the published configurations.

    Attributes:
        draft_vocab_size: tokens that its head knows.
        max_position_embeddings: 0 where that is not stated.
        head_dim: size of a head; hidden size over heads where it is 0.
        target_hidden_size: `e`; the draft's own where it is 0.
        aux_layers: whose inputs are read; None is `(2, layers // 2, layers - 3)` of the target.
        own_head: an LM head of its own; else it shares the target's.
        qk_norm: norms of queries and keys, as Qwen3 has them.
        norm_before_residual: the normed feature goes past the attention, not the feature itself.
        norm_before_fc: one norm of the layers side by side, before they are fused.
        fc_norm: a norm of every layer, before they are fused.
        norm_output: the normed guess is what drafting goes on from.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    draft_vocab_size: int
    num_hidden_layers: int = 1
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    max_position_embeddings: int = 0
    head_dim: int = 0
    target_hidden_size: int = 0
    aux_layers: tuple[int, ...] | None = None
    attention_bias: bool = False
    output_bias: bool = False
    own_head: bool = True
    fc_bias: bool = False
    qk_norm: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False

    def __post_init__(self) -> None:
        if not self.head_dim:
            head_dim = self.hidden_size // self.num_attention_heads
            object.__setattr__(self, "head_dim", head_dim)
        if not self.target_hidden_size:
            object.__setattr__(self, "target_hidden_size", self.hidden_size)

    @property
    def fused(self) -> int:
        """How many layers are read, `k`."""
        return len(self.aux_layers) if self.aux_layers else 3


class _Layer(nn.Module):
    """A decoder layer; the first one attends from a token's embedding and a feature side by side.

    What goes past its attention is the feature.
    """

    def __init__(self, config: Eagle3Config, index: int) -> None:
        super().__init__()
        c, d = config, config.hidden_size
        self.self_attn = Attention(
            d,
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
            inputs=d if index else 2 * d,
            bias=c.attention_bias,
            output_bias=c.output_bias,
            norm_eps=c.rms_norm_eps if c.qk_norm else None,
        )
        self.mlp = Mlp(d, c.intermediate_size)
        self.input_layernorm = nn.RMSNorm(d, c.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(d, c.rms_norm_eps)
        self.hidden_norm = None if index else nn.RMSNorm(d, c.rms_norm_eps)
        self.index, self.norm_before_residual = index, c.norm_before_residual

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, cache: SlotCache | None
    ) -> Tensor:
        if self.hidden_norm is None:
            rest, normed = x, self.input_layernorm(x)
        else:
            embedding, rest = x.chunk(2, -1)
            feature = self.hidden_norm(rest)
            normed = torch.cat([self.input_layernorm(embedding), feature], -1)
            rest = feature if self.norm_before_residual else rest
        x = rest + self.self_attn(normed, rotation, mask, cache, self.index)
        return x + self.mlp(self.post_attention_layernorm(x))


class Eagle3Draft(SequentialDraft):
    """EAGLE-3.

    Args:
        config: geometry.
        token_map: `[draft_vocab_size]` target tokens that the draft's own stand for; None where
            they are the same.
        embedding: the draft's own token embedding; None shares the target's.
        name: what messages call it.
        adapter: compresses images; None reads every image token like text.
    """

    def __init__(
        self,
        config: Eagle3Config,
        token_map: Tensor | None = None,
        embedding: nn.Embedding | None = None,
        name: str = "eagle3",
        adapter: Adapter | None = None,
    ) -> None:
        c, d = config, config.hidden_size
        super().__init__(d, c.vocab_size, adapter, embedding, name, token_map, c.fc_bias)
        self.config = config
        read = c.fused * c.target_hidden_size
        self.fc = nn.Linear(read, d, bias=c.fc_bias)
        self.layers = nn.ModuleList(_Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(d, c.rms_norm_eps)
        self.lm_head = nn.Linear(d, c.draft_vocab_size, bias=False) if c.own_head else None
        self.input_norm = nn.RMSNorm(read, c.rms_norm_eps) if c.norm_before_fc else None
        self.fc_norm = (
            nn.ModuleList(nn.RMSNorm(c.target_hidden_size, c.rms_norm_eps) for _ in range(c.fused))
            if c.fc_norm
            else None
        )
        self._rotary = Rotary(c.head_dim, c.rope_theta, c.rope_scaling, c.max_position_embeddings)

    def take(self, adapter: Adapter, bias: bool = False) -> None:
        if adapter.rows:
            raise SettingsError(
                "EAGLE-3's rows are twice as wide as its adapter", "Leave rows = true out."
            )
        super().take(adapter, bias)

    def feature_layers(self, target: Target) -> Sequence[int]:
        if self.config.aux_layers is not None:
            return self.config.aux_layers
        count = target.text_config.num_hidden_layers
        return 2, count // 2, count - 3

    @property
    def follows_positions(self) -> bool:
        """EAGLE-3 drafts with M-RoPE were trained with the target's positions."""
        return self._rotary.axis is not None

    def cache_shapes(self) -> list[tuple[int, int]]:
        return [(self.config.num_key_value_heads, self.config.head_dim)] * len(self.layers)

    def fuse(self, features: Tensor) -> Tensor:
        """`[…, k e]` to `[…, d]`."""
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            parts = features.chunk(len(self.fc_norm), -1)
            features = torch.cat([norm(p) for norm, p in zip(self.fc_norm, parts, strict=True)], -1)
        return self.fc(features)

    def combine(self, embedding: Tensor, feature: Tensor, globals_: Tensor) -> Tensor:
        """Side by side, `[…, 2 d]`."""
        return torch.cat([embedding, self.join(feature, globals_)], -1)

    def enter(self, tokens: Tensor) -> Tensor:
        """With no feature beside them."""
        return torch.cat([tokens, torch.zeros_like(tokens)], -1)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        mask: Tensor | None = None,
        cache: SlotCache | None = None,
    ) -> Tensor:
        rotation = self._rotary(position, x.dtype)
        for layer in self.layers:
            x = layer(x, rotation, mask, cache)
        return self.norm(x) if self.config.norm_output else x

    def logits(self, hidden: Tensor, head: nn.Module) -> Tensor:
        """`[…, draft_vocab_size]`, of its own head where it has one."""
        hidden = hidden if self.config.norm_output else self.norm(hidden)
        return super().logits(hidden, self.lm_head or head)

    def mismatches(self, target: Target) -> list[str]:
        c, problems = self.config, shared_misfits(self, target)
        if c.target_hidden_size != target.hidden_size:
            problems.append(
                f"draft reads features of size {c.target_hidden_size}, target's have"
                f" {target.hidden_size}"
            )
        if c.vocab_size != target.vocab_size:
            problems.append(
                f"draft expects a vocabulary of {c.vocab_size}, target has {target.vocab_size}"
            )
        return problems + self._layers_beyond(target) + placing_misfits(self, target)
