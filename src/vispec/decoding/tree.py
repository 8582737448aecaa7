"""A proposal: several continuations of the same text, sharing their beginnings.

Shapes: `b` requests, `n` nodes. Node 0 is the root, the last token that was emitted and whose keys
the target has not computed yet. Every parent stands before its children.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class TreeShape:
    """The budget of a dynamic draft tree (EAGLE-2, arXiv 2406.16858).

    Args:
        size: nodes that the target verifies, the root included.
        depth: levels below the root, the most draft tokens one pass can accept.
        width: nodes expanded per level, and children considered per node; 1 drafts a chain.
    """

    size: int = 30
    depth: int = 4
    width: int = 8

    def __post_init__(self) -> None:
        for name in ("depth", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"tree {name} is {getattr(self, name)}; it must be at least 1")
        if self.size < 2:
            raise ValueError(f"tree size is {self.size}; it must be at least 2 (root and a token)")

    @property
    def expanded(self) -> int:
        """Nodes that a draft continues while it grows the tree."""
        return self.width * (self.depth - 1)

    @classmethod
    def chain(cls, length: int) -> TreeShape:
        """A single path of `length` draft tokens."""
        return cls(size=length + 1, depth=length, width=1)

    def as_chain(self) -> TreeShape:
        """The longest single path within the budget."""
        return self.chain(min(self.depth, self.size - 1))


@dataclass(frozen=True)
class SampledShape:
    """A tree whose shape is fixed before its tokens are drawn, as stochastic acceptance requires.

    Args:
        branching: children drawn for every node of each level; `(1, 1, 1)` is a chain of three.
    """

    branching: tuple[int, ...] = (1, 1, 1, 1)

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise ValueError(f"branching {self.branching} must list at least one number above 0")

    @property
    def depth(self) -> int:
        return len(self.branching)

    @property
    def expanded(self) -> int:
        """Nodes that a draft continues while it grows the tree."""
        return self.level_starts[-2] - 1

    @cached_property
    def level_starts(self) -> list[int]:
        """Index of the first node of every level, the root's first, and the node count last."""
        starts, width = [0, 1], 1
        for k in self.branching:
            width *= k
            starts.append(starts[-1] + width)
        return starts

    @property
    def size(self) -> int:
        return self.level_starts[-1]

    def as_chain(self) -> SampledShape:
        """A single path as deep."""
        return SampledShape((1,) * self.depth)


@dataclass
class Tree:
    """Tokens proposed for `b` requests.

    Attributes:
        token: `[b, n]`, -1 where a node stands for nothing (such a node is never accepted).
        parent: `[b, n]`, index of each node's parent, -1 at the root.
        depth: `[b, n]`, 0 at the root.
        max_depth: the largest depth, known without asking the device.
        logprob: `[b, n]`, cumulative draft log-probability, 0 at the root.
        proposal: `[b, m, V]` draft distribution at the first `m` nodes, from which their children
            were drawn; only for sampled trees.
        shape: the fixed shape of a sampled tree.
    """

    token: Tensor
    parent: Tensor
    depth: Tensor
    max_depth: int
    logprob: Tensor
    proposal: Tensor | None = None
    shape: SampledShape | None = None

    @classmethod
    def root(cls, token: Tensor) -> Tree:
        """A tree that proposes nothing: the plain loop. `token [b]`."""
        token = token[:, None]
        zero = torch.zeros_like(token)
        return cls(token, zero - 1, zero, 0, torch.zeros(token.shape, device=token.device))

    @property
    def size(self) -> int:
        return self.token.shape[1]


def ancestors(parent: Tensor, count: int) -> Tensor:
    """`[b, n, count]`, the last nodes on every node's path, itself last.

    Args:
        parent: `[b, n]`, of a tree.
        count: how many; the root stands for what there is not above it.
    """
    path = [torch.arange(parent.shape[1], device=parent.device).expand(parent.shape)]
    for _ in range(count - 1):
        path.append(parent.gather(1, path[-1]).clamp(min=0))
    return torch.stack(path[::-1], -1)


def ancestor_mask(parent: Tensor, max_depth: int) -> Tensor:
    """Whether column is row's ancestor or row itself.

    Doubling: after `i` rounds a row holds its `2**i` nearest ancestors.

    Args:
        parent: `[b, n]`, -1 at roots.
        max_depth: an upper bound of the longest path.

    Returns:
        `[b, n, n]` bool.
    """
    b, n = parent.shape
    mask = torch.eye(n, dtype=torch.bool, device=parent.device).repeat(b, 1, 1)
    # A virtual node n is every root's parent and its own; it keeps the jumps inside the table.
    jump = torch.where(parent < 0, n, parent)
    jump = torch.cat([jump, jump.new_full((b, 1), n)], 1)
    nothing = mask.new_zeros(b, 1, n)
    reach = 1
    while reach <= max_depth:
        padded = torch.cat([mask, nothing], 1)
        mask = mask | padded.gather(1, jump[:, :n, None].expand(b, n, n))
        jump = jump.gather(1, jump)
        reach *= 2
    return mask
