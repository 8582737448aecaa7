"""A language whose every probability is known, as a target and as a draft.

A token's distribution depends on all tokens before it. Shapes: `V` tokens, texts of `L` tokens.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from vispec.decoding.sampling import KeyedNoise
from vispec.decoding.tree import SampledShape, Tree
from vispec.drafts.growth import grow_sampled
from vispec.targets.base import Prefill, Prompt, Verification


class Table:
    """`logits[code]` for every text of fewer than `length` tokens; `code` numbers the texts."""

    def __init__(self, vocabulary: int, length: int, seed: int, spread: float = 1.5) -> None:
        self.vocabulary, self.length = vocabulary, length
        generator = torch.Generator().manual_seed(seed)
        # One more level than needed: trees may look beyond the end.
        texts = sum(vocabulary**n for n in range(length + 6))
        shape = (texts, vocabulary)
        self.logits = torch.randn(shape, generator=generator, dtype=torch.float64) * spread

    def extend(self, code: Tensor, token: Tensor) -> Tensor:
        """The code of a text with one more token; 0 is the empty text."""
        return code * self.vocabulary + 1 + token

    def law(self) -> Tensor:
        """Probability of every text of `length` tokens, in lexicographic order."""
        p = self.logits.softmax(-1)
        found = []
        for text in itertools.product(range(self.vocabulary), repeat=self.length):
            code, chance = torch.tensor(0), torch.tensor(1.0, dtype=torch.float64)
            for token in text:
                chance = chance * p[code, token]
                code = self.extend(code, torch.tensor(token))
            found.append(chance)
        return torch.stack(found)


def grow(table: Table, roots: Tensor, code: Tensor, shape: SampledShape, noise: Any) -> Tree:
    """A sampled tree of the table's own tokens behind texts `code [b]`."""
    codes = code[:, None]

    def expand(token: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
        nonlocal codes
        codes = table.extend(codes.gather(1, origin), token)
        return table.logits[codes]

    return grow_sampled(roots, table.logits[code], expand, shape, noise)


def tree_codes(table: Table, tree: Tree, code: Tensor) -> Tensor:
    """`[b, n]` codes of the texts that end at each node; `code [b]` those that end at the roots."""
    codes = [code]
    for node in range(1, tree.size):
        parent = torch.stack(codes, 1).gather(1, tree.parent[:, node : node + 1])[:, 0]
        codes.append(table.extend(parent, tree.token[:, node].clamp(min=0)))
    return torch.stack(codes, 1)


class TableCache:
    """Remembers each slot's text instead of keys."""

    def __init__(self, slots: int) -> None:
        self.code = torch.zeros(slots, dtype=torch.long)
        self.written = torch.zeros(slots, 1, dtype=torch.long)

    def keep(self, slot: int, nodes: list[int]) -> None:
        self.code[slot] = self.written[slot, nodes[-1]]

    def move(self, source: int, target: int) -> None:
        self.code[target] = self.code[source]
        self.written[target] = self.written[source]


class TableTarget:
    """A target for `vispec.decoding.loop.run`; a slot's code is the text before its root."""

    device = torch.device("cpu")
    chains_only = False

    def __init__(self, table: Table) -> None:
        self.table = table

    def new_cache(self, slots: int, capacity: int) -> TableCache:
        return TableCache(slots)

    def prefill(self, prompt: Prompt, cache: TableCache, slot: int, layers: Any) -> Prefill:
        cache.code[slot] = 0
        return Prefill(self.table.logits[:1], *[torch.empty(0)] * 3, 0.0, 0.0)

    def verify(self, tree: Tree, cache: TableCache, layers: Any) -> Verification:
        b = len(tree.token)
        codes = tree_codes(self.table, tree, self.table.extend(cache.code[:b], tree.token[:, 0]))
        cache.written[:b] = 0
        cache.written = torch.zeros(len(cache.code), tree.size, dtype=torch.long)
        cache.written[:b] = codes
        return Verification(self.table.logits[codes], codes[..., None], codes[..., None])


class TableDraft:
    """A draft from another table over the same tokens."""

    name = "table"

    def __init__(self, table: Table) -> None:
        self.table = table

    def check(self, target: Any) -> None:
        """Fits."""

    def feature_layers(self, target: Any) -> tuple[int, ...]:
        return ()

    def session(self, target: Any, slots: int, capacity: int) -> TableSession:
        return TableSession(self.table, slots)


class TableSession:
    def __init__(self, table: Table, slots: int) -> None:
        self.table = table
        self.code = torch.zeros(slots, dtype=torch.long)

    def begin(self, slot: int, prompt: Prompt, prefill: Prefill, token: int) -> None:
        self.code[slot] = self.table.extend(torch.tensor(0), torch.tensor(token))

    def propose(self, roots: Tensor, shape: SampledShape, noise: KeyedNoise) -> Tree:
        return grow(self.table, roots, self.code[: len(roots)], shape, noise)

    def advance(self, nodes: Any, tokens: list[list[int]], features: Tensor) -> None:
        for slot, row in enumerate(tokens):
            for token in row:
                self.code[slot] = self.table.extend(self.code[slot], torch.tensor(token))

    def move(self, source: int, target: int) -> None:
        self.code[target] = self.code[source]


def chi_square(counts: Tensor, law: Tensor) -> float:
    """The chance of counts at least this far from the law, were they drawn from it."""
    expected = law * counts.sum()
    assert expected.min() > 5, "too few draws for a chi-square test"
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(law) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()
