"""Drafts that look up what followed the same words before (prompt lookup: A. Saxena, 2023).

Text that repeats itself, or what stands in its prompt, is proposed for nothing: no weights, no
passes. Several places where the last words stood before make a tree of what followed each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts.base import DraftNoise
from vispec.targets.base import Prefill, Prompt, Target


class Passage:
    """A text that grows, and where its words stood.

    Args:
        ids: its tokens, negative where there is none to be said again: images.
        longest: of the sequences of tokens that are looked up.
    """

    def __init__(self, ids: Sequence[int], longest: int) -> None:
        self.longest = longest
        self.ids: list[int] = []
        # Where each sequence of up to `longest` tokens has ended, the last place last.
        self.places: dict[tuple[int, ...], list[int]] = {}
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Add tokens at the end."""
        for token in ids:
            self.ids.append(token)
            end = len(self.ids)
            for length in range(1, min(self.longest, end) + 1):
                key = tuple(self.ids[end - length :])
                if key[0] < 0:
                    break
                self.places.setdefault(key, []).append(end)

    def matches(self, least: int = 1) -> Iterator[int]:
        """Ends of earlier passages that end as this one does.

        Those that agree in more tokens first, and of those the latest; none below `least` tokens.
        """
        seen = {len(self.ids)}
        for length in range(min(self.longest, len(self.ids)), least - 1, -1):
            for place in reversed(self.places.get(tuple(self.ids[-length:]), ())):
                if place not in seen:
                    seen.add(place)
                    yield place

    def followed(self, place: int, count: int) -> list[int]:
        """The tokens behind a place, up to the next image."""
        behind = self.ids[place : place + count]
        return behind[: next((i for i, token in enumerate(behind) if token < 0), len(behind))]


class LookupDraft:
    """Proposes what followed the last words where they stood before.

    Args:
        longest: tokens that are compared, at most.
        least: tokens that must agree.
    """

    def __init__(self, longest: int = 3, least: int = 1, name: str = "lookup") -> None:
        if not 1 <= least <= longest:
            raise ValueError(f"least is {least}; it must be from 1 to longest, {longest}")
        self.longest, self.least, self.name = longest, least, name

    def feature_layers(self, target: Target) -> Sequence[int]:
        return ()

    def check(self, target: Target) -> None:
        """It fits every target."""

    def compile_passes(self) -> None:
        """There are none."""

    def session(self, target: Target, slots: int, capacity: int) -> LookupSession:
        return LookupSession(self, slots)


class LookupSession:
    """The texts of a running batch."""

    def __init__(self, draft: LookupDraft, slots: int) -> None:
        self.draft = draft
        self.texts = [Passage((), draft.longest) for _ in range(slots)]

    def begin(self, slot: int, prompt: Prompt, prefill: Prefill, token: int) -> None:
        shown = (prefill.image_index >= 0).tolist()
        ids = [-1 if image else id_ for id_, image in zip(prompt.ids, shown, strict=True)]
        self.texts[slot] = Passage([*ids, token], self.draft.longest)

    def propose(
        self, roots: Tensor, shape: TreeShape | SampledShape, noise: DraftNoise | None
    ) -> Tree:
        """A tree whose children are certain: what is accepted follows the keyed rule."""
        rows = [self.branches(slot, shape) for slot in range(len(roots))]
        return planted(roots, rows, shape)

    def branches(self, slot: int, shape: TreeShape | SampledShape) -> list[tuple[int, int]]:
        """Nodes `(token, parent)` below a request's root, within the budget."""
        text, depth, room = self.texts[slot], shape.depth, shape.size - 1
        nodes: list[tuple[int, int]] = []
        known: dict[tuple[int, int], int] = {}
        # Where the same follows everywhere, a few places say it all.
        for place in islice(text.matches(self.draft.least), 2 * shape.size):
            node = 0
            for token in text.followed(place, depth):
                step = (token, node)
                if step not in known:
                    if len(nodes) == room:
                        return nodes
                    nodes.append(step)
                    known[step] = len(nodes)
                node = known[step]
        return nodes

    def advance(
        self, nodes: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], features: Tensor
    ) -> None:
        for slot, said in enumerate(tokens):
            self.texts[slot].extend(said)

    def move(self, source: int, target: int) -> None:
        self.texts[target] = self.texts[source]


def planted(
    roots: Tensor, rows: Sequence[Sequence[tuple[int, int]]], shape: TreeShape | SampledShape
) -> Tree:
    """A tree of nodes `(token, parent)`, parents before children; the rest stands for nothing."""
    n = shape.size
    tokens, parents, depths = [], [], []
    for root, nodes in zip(roots.tolist(), rows, strict=True):
        depth = [0]
        for _, parent in nodes:
            depth.append(depth[parent] + 1)
        rest = n - 1 - len(nodes)
        tokens.append([root, *(token for token, _ in nodes), *[-1] * rest])
        parents.append([-1, *(parent for _, parent in nodes), *[0] * rest])
        depths.append(depth + [1] * rest)
    token, above, below = torch.tensor([tokens, parents, depths], device=roots.device).unbind()
    logprob = torch.zeros(token.shape, device=roots.device)
    return Tree(token, above, below, shape.depth, logprob)
