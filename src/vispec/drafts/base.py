"""What the engine knows about a draft: something that proposes trees.

A `Draft` holds weights and is shared; a `DraftSession` holds what one running batch needs. Slots
`0 … b - 1` of a session are the same requests as slots `0 … b - 1` of the target's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.targets.base import Prefill, Prompt, Target


@runtime_checkable
class Draft(Protocol):
    """Weights and settings; `session` starts using them."""

    @property
    def name(self) -> str: ...

    def feature_layers(self, target: Target) -> Sequence[int]:
        """Whose hidden states it reads, see `Target.prefill`; none: the final norm's output."""
        ...

    def check(self, target: Target) -> None:
        """Raise `DraftMismatchError`, listing everything that does not fit `target`."""
        ...

    def compile_passes(self) -> None:
        """Compile what runs in every cycle, where that pays; see `Target.compile_passes`."""
        ...

    def session(self, target: Target, slots: int, capacity: int) -> DraftSession:
        """State for up to `slots` requests of up to `capacity` target positions each."""
        ...


class DraftSession(Protocol):
    """A draft at work on a batch."""

    def begin(self, slot: int, prompt: Prompt, prefill: Prefill, token: int) -> None:
        """Read a prompt that the target has run; `token` is the first it said."""
        ...

    def propose(
        self, roots: Tensor, shape: TreeShape | SampledShape, noise: DraftNoise | None
    ) -> Tree:
        """Propose a tree behind each root `[b]`; sampled children are drawn with `noise`."""
        ...

    def advance(
        self, nodes: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], features: Tensor
    ) -> None:
        """Take in what was accepted.

        Args:
            nodes: accepted tree nodes of each request, the root first.
            tokens: the token behind each of them.
            features: `[b, n, f]` target features of every node.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Let slot `target` take over what slot `source` holds."""
        ...


class DraftNoise(Protocol):
    """Keys the noise that draws sampled children."""

    def gumbel(self, first: int, nodes: int, vocabulary: int) -> Tensor:
        """`[b, nodes, vocabulary]` for the tree's nodes from `first` on, fresh in every cycle."""
        ...

    @property
    def temperature(self) -> Tensor:
        """`[b]`, what the draft's logits are divided by before drawing."""
        ...


def numbers_of(draft: nn.Module) -> Tensor:
    """A parameter in the numbers that a network computes with: whole ones are only kept."""
    return next(p for p in draft.parameters() if p.is_floating_point())


def shared_misfits(draft: Any, target: Target) -> list[str]:
    """Why a network cannot use the target's token embedding or LM head in place of its own.

    Args:
        draft: whose `embed_tokens` and `lm_head` are None where it shares the target's.
    """
    size, theirs = draft.config.hidden_size, target.hidden_size
    shared = {"token embedding": draft.embed_tokens is None, "LM head": draft.lm_head is None}
    names = " and ".join(name for name, is_shared in shared.items() if is_shared)
    if not names or size == theirs:
        return []
    return [
        f"draft of hidden size {size} shares the {names} of the target, whose hidden size is"
        f" {theirs}"
    ]


def size_misfits(hidden_size: int, vocab_size: int, target: Target) -> list[str]:
    """Sizes that a draft expects and its target has not."""
    problems = []
    if hidden_size != target.hidden_size:
        problems.append(f"draft expects hidden size {hidden_size}, target has {target.hidden_size}")
    if vocab_size != target.vocab_size:
        problems.append(
            f"draft expects a vocabulary of {vocab_size}, target has {target.vocab_size}"
        )
    return problems


def placing_misfits(draft: nn.Module, target: Target) -> list[str]:
    """Of a draft that has its weights already: numbers and devices that do not go together."""
    own, found = numbers_of(draft), []
    if own.is_meta:
        return []
    if own.dtype != target.dtype:
        found.append(f"draft is in {own.dtype}, target in {target.dtype}: draft.to(dtype=…)")
    if own.device != target.device:
        found.append(f"draft is on {own.device}, target on {target.device}: draft.to(device=…)")
    return found
