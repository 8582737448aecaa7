"""Trees grown from tables, against EAGLE-2 written with dictionaries."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from trees import path
from vispec.decoding.sampling import KeyedNoise
from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts.growth import grow_dynamic, grow_sampled

Text = tuple[int, ...]


class Table:
    """Logits behind every text, drawn when they are first asked for."""

    def __init__(self, vocabulary: int, seed: int, sure: float = 0.0) -> None:
        self.vocabulary, self.sure = vocabulary, sure
        self.generator = torch.Generator().manual_seed(seed)
        self.rows: dict[Text, Tensor] = {}

    def __getitem__(self, text: Text) -> Tensor:
        if text not in self.rows:
            row = torch.randn(self.vocabulary, generator=self.generator) * 2
            if torch.rand(1, generator=self.generator) < self.sure:
                row[int(row.argmax())] += 1000.0  # a log-probability of exactly 0
            self.rows[text] = row
        return self.rows[text]


class Drafts:
    """What `grow_dynamic` calls: continues each request's texts, and checks what it is told."""

    def __init__(self, tables: list[Table]) -> None:
        self.tables = tables
        self.levels: list[list[list[Text]]] = []  # of every call, each request's texts

    def first(self) -> Tensor:
        return torch.stack([table[()] for table in self.tables])

    def expand(self, token: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
        b, w = token.shape
        before = self.levels[-1] if self.levels else [[()] for _ in range(b)]
        texts = [
            [(*before[row][int(origin[row, i])], int(token[row, i])) for i in range(w)]
            for row in range(b)
        ]
        expanded = [*self.levels, texts]
        assert seen.shape == (b, w, w * len(expanded))
        for row in range(b):
            everyone = [text for level in expanded for text in level[row]]
            for i, text in enumerate(texts[row]):
                shown = [everyone[m] for m in seen[row, i].nonzero()[:, 0].tolist()]
                assert shown == [text[: k + 1] for k in range(len(text))]
                assert bool(seen[row, i, w * len(self.levels) + i])
        self.levels.append(texts)
        return torch.stack(
            [torch.stack([self.tables[row][t] for t in texts[row]]) for row in range(b)]
        )


@dataclass(frozen=True)
class Node:
    """A candidate: its whole text behind the root, and its cumulative log-probability."""

    text: Text
    score: float


def eagle_2(table: Table, shape: TreeShape) -> dict[Text, float]:
    """Expand the best `width` of each level, then keep the best of everything."""
    width = min(shape.width, table.vocabulary)
    found: list[Node] = []
    frontier = [Node((), 0.0)]
    for _ in range(shape.depth):
        level = []
        for node in frontier:
            log_p, tokens = table[node.text].log_softmax(-1).topk(width)
            for token, value in zip(tokens.tolist(), log_p, strict=True):
                score = float(torch.tensor(node.score) + value)
                level.append(Node((*node.text, token), score))
        found += level
        frontier = sorted(level, key=lambda node: -node.score)[:width]
    best = sorted(found, key=lambda node: (-node.score, len(node.text)))[: shape.size - 1]
    return {node.text: node.score for node in best}


def texts(tree: Tree, row: int) -> dict[Text, float]:
    """Every node but the root by the text behind the root."""
    token, parent = tree.token[row].tolist(), tree.parent[row].tolist()
    found = {}
    for node in range(1, tree.size):
        found[tuple(token[i] for i in path(parent, node)[1:])] = tree.logprob[row, node].item()
    return found


def assert_is_a_tree(tree: Tree, shape: TreeShape | SampledShape) -> None:
    b, n = tree.token.shape
    assert n <= shape.size
    assert tree.parent.shape == tree.depth.shape == tree.logprob.shape == (b, n)
    for row in range(b):
        parent, depth = tree.parent[row].tolist(), tree.depth[row].tolist()
        assert parent[0] == -1
        assert depth[0] == 0
        assert depth == sorted(depth)
        for node in range(1, n):
            assert 0 <= parent[node] < node
            assert depth[node] == depth[parent[node]] + 1 <= tree.max_depth
            assert tree.logprob[row, node] <= tree.logprob[row, parent[node]]
        siblings = list(zip(parent[1:], tree.token[row, 1:].tolist(), strict=True))
        if isinstance(shape, TreeShape):
            assert len(set(siblings)) == len(siblings)


def grown(tables: list[Table], shape: TreeShape) -> tuple[Tree, Drafts]:
    drafts = Drafts(tables)
    root = torch.arange(len(tables)) + 100
    tree = grow_dynamic(root, drafts.first(), drafts.expand, shape)
    assert torch.equal(tree.token[:, 0], root)
    assert len(drafts.levels) == shape.depth - 1
    return tree, drafts


def test_dynamic_trees_are_eagle_2s_on_random_tables() -> None:
    for seed in range(100):
        draw = random.Random(seed)
        shape = TreeShape(draw.randint(2, 40), draw.randint(1, 5), draw.randint(1, 6))
        vocabulary, b = draw.choice((3, 7, 20)), draw.randint(1, 4)
        tables = [Table(vocabulary, 10 * seed + row) for row in range(b)]
        tree, _ = grown(tables, shape)
        assert_is_a_tree(tree, shape)
        for row, table in enumerate(tables):
            expected, found = eagle_2(table, shape), texts(tree, row)
            assert found.keys() == expected.keys(), (seed, row)
            for text, score in found.items():
                assert score == pytest.approx(expected[text], abs=1e-4)


def test_nodes_of_a_level_stand_in_the_order_of_their_parents_and_ranks() -> None:
    for seed in range(20):
        table = Table(9, seed)
        tree, _ = grown([table], TreeShape(25, 4, 4))
        depth, parent = tree.depth[0].tolist(), tree.parent[0].tolist()
        for node in range(1, tree.size - 1):
            if depth[node] == depth[node + 1] and parent[node] == parent[node + 1]:
                assert tree.logprob[0, node] >= tree.logprob[0, node + 1]


@pytest.mark.parametrize("sure", [0.3, 0.8, 1.0])
def test_children_as_sure_as_their_parents_still_make_a_tree(sure: float) -> None:
    """A log-probability of 0 ties a child with its parent, which must not lose its place."""
    for seed in range(60):
        draw = random.Random(seed)
        shape = TreeShape(draw.randint(2, 20), draw.randint(1, 6), draw.randint(1, 4))
        tables = [Table(6, 7 * seed + row, sure) for row in range(3)]
        tree, _ = grown(tables, shape)
        assert_is_a_tree(tree, shape)
        for row, table in enumerate(tables):
            expected, found = eagle_2(table, shape), texts(tree, row)
            assert sorted(found.values()) == pytest.approx(sorted(expected.values()), abs=1e-3)


def test_equal_logits_everywhere_still_make_a_tree() -> None:
    shape = TreeShape(30, 4, 5)
    tree = grow_dynamic(
        torch.zeros(2, dtype=torch.long),
        torch.zeros(2, 8),
        lambda token, origin, seen: torch.zeros(*token.shape, 8),
        shape,
    )
    assert_is_a_tree(tree, shape)
    assert tree.size == shape.size


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_width_one_is_the_greedy_chain(depth: int) -> None:
    for seed in range(10):
        table = Table(9, seed)
        tree, _ = grown([table], TreeShape.chain(depth))
        text: Text = ()
        for _ in range(depth):
            text = (*text, int(table[text].argmax()))
        assert tree.token[0, 1:].tolist() == list(text)
        assert tree.parent[0].tolist() == list(range(-1, depth))
        assert tree.depth[0].tolist() == list(range(depth + 1))


@pytest.mark.parametrize("shape", [TreeShape(500, 3, 3), TreeShape(50, 1, 4), TreeShape(99, 2, 1)])
def test_a_budget_larger_than_the_candidates_keeps_them_all(shape: TreeShape) -> None:
    table = Table(9, 0)
    tree, _ = grown([table], shape)
    width = shape.width
    assert tree.size == 1 + width + (shape.depth - 1) * width * width
    assert_is_a_tree(tree, shape)
    assert texts(tree, 0).keys() == eagle_2(table, shape).keys()


@pytest.mark.parametrize("vocabulary", [1, 2, 3])
def test_a_vocabulary_smaller_than_the_width_is_used_whole(vocabulary: int) -> None:
    shape = TreeShape(40, 4, 8)
    table = Table(vocabulary, 1)
    tree, _ = grown([table], shape)
    assert_is_a_tree(tree, shape)
    assert texts(tree, 0).keys() == eagle_2(table, shape).keys()


def test_tokens_the_draft_rules_out_make_no_tree_ill() -> None:
    """Logits of minus infinity, more of them than children are wanted."""
    for seed in range(20):
        tables = [Table(8, seed), Table(8, seed + 50)]
        drafts = Drafts(tables)

        def only_two(*given: Tensor, drafts: Drafts = drafts) -> Tensor:
            return drafts.expand(*given).index_fill(-1, torch.arange(2, 8), -torch.inf)

        shape = TreeShape(12, 3, 4)
        tree = grow_dynamic(torch.zeros(2, dtype=torch.long), drafts.first(), only_two, shape)
        assert_is_a_tree(tree, shape)


def test_a_request_grows_the_same_tree_alone_and_among_others() -> None:
    for seed in range(20):
        shape = TreeShape(15, 4, 3)
        together, _ = grown([Table(7, seed + row) for row in range(4)], shape)
        for row in range(4):
            alone, _ = grown([Table(7, seed + row)], shape)
            assert torch.equal(together.token[row, 1:], alone.token[0, 1:])
            assert torch.equal(together.parent[row], alone.parent[0])


# --- Sampled trees --------------------------------------------------------------------------------


def sampled(tables: list[Table], shape: SampledShape, first_seed: int, heat: float = 1.0) -> Tree:
    drafts = Drafts(tables)
    b = len(tables)
    noise = KeyedNoise(
        torch.arange(first_seed, first_seed + b), torch.zeros(b).long(), torch.full((b,), heat)
    )
    return grow_sampled(torch.zeros(b).long(), drafts.first(), drafts.expand, shape, noise)


@pytest.mark.parametrize("branching", [(1,), (1, 1, 1), (3, 2), (2, 1, 2), (5,)])
def test_a_sampled_tree_has_the_shape_it_was_given(branching: tuple[int, ...]) -> None:
    shape = SampledShape(branching)
    tables = [Table(6, seed) for seed in range(3)]
    tree = sampled(tables, shape, 0)
    assert_is_a_tree(tree, shape)
    assert tree.size == shape.size
    assert tree.shape is shape
    levels, parents = [[0]], [-1]
    for children in branching:
        parents += [node for node in levels[-1] for _ in range(children)]
        levels.append(list(range(len(parents) - len(levels[-1]) * children, len(parents))))
    assert tree.parent.tolist() == [parents] * 3
    for row, table in enumerate(tables):
        for node in range(tree.size):
            children = [i for i in range(tree.size) if parents[i] == node]
            tokens = tree.token[row, children].tolist()
            assert len(set(tokens)) == len(tokens), "drawn twice"
            if children:
                text = tuple(tree.token[row, path(parents, node)[1:]].tolist())
                assert tree.proposal is not None
                expected = table[text].double().softmax(-1)
                torch.testing.assert_close(tree.proposal[row, node], expected)


def test_children_beyond_what_the_draft_thinks_possible_stand_for_nothing() -> None:
    shape = SampledShape((4, 2))
    logits = torch.full((1, 6), -torch.inf)
    logits[0, [1, 3]] = torch.tensor([0.5, -0.5])
    noise = KeyedNoise(torch.tensor([3]), torch.tensor([0]), torch.ones(1))

    def expand(token: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
        return logits[:, None].expand(-1, token.shape[1], -1)

    tree = grow_sampled(torch.tensor([0]), logits, expand, shape, noise)
    assert sorted(tree.token[0, 1:5].tolist()) == [-1, -1, 1, 3]
    assert tree.token[0, 3:5].tolist() == [-1, -1]
    small = SampledShape((9,))
    tree = grow_sampled(torch.tensor([0]), torch.zeros(1, 3), expand, small, noise)
    assert tree.size == 10
    assert sorted(tree.token[0, 1:].tolist()) == [-1] * 6 + [0, 1, 2]


def test_pairs_of_children_are_draws_without_replacement() -> None:
    """Every ordered pair as often as its probability says."""
    table, count = Table(4, 5), 40_000
    seeds = torch.arange(count)
    heat = 1.7
    noise = KeyedNoise(seeds, torch.zeros(count).long(), torch.full((count,), heat))
    logits = table[()].expand(count, -1)
    tree = grow_sampled(seeds * 0, logits, lambda *_: logits[:, None], SampledShape((2,)), noise)
    q = (table[()].double() / heat).softmax(-1)
    for first, second in itertools.permutations(range(4), 2):
        chance = (q[first] * q[second] / (1 - q[first])).item()
        share = ((tree.token[:, 1] == first) & (tree.token[:, 2] == second)).double().mean()
        assert abs(share.item() - chance) < 5 * (chance / count) ** 0.5
