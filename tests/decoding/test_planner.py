"""The tree that measured fastest is taken."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

from vispec.decoding.engine import Engine, Request
from vispec.decoding.planner import TREES, fastest_tree
from vispec.decoding.tree import TreeShape


class Pretended:
    """Answers at the speed of its tree, but slowly the first two times."""

    def __init__(self, tree: TreeShape) -> None:
        self.tree, self.asked = tree, 0

    def generate(self, requests: list[Request]) -> list[Any]:
        self.asked += 1
        slow = self.asked < 3 and self.tree.size == 8
        time.sleep(0.05 if slow else 0.001 * abs(self.tree.size - 8) + 0.001)
        return [SimpleNamespace(token_ids=[1, 2, 3]) for _ in requests]


def test_the_tree_with_the_most_tokens_a_second_is_taken_whatever_a_slow_round_took() -> None:
    rates: dict[TreeShape, float] = {}
    answers: list[None] = []
    trees = (TreeShape(4, 2, 2), TreeShape(8, 2, 2), TreeShape(16, 2, 2))
    taken = fastest_tree(
        lambda tree: cast(Engine, Pretended(tree)),
        trees,
        [Request("a")],
        report=rates.__setitem__,
        answered=lambda: answers.append(None),
    )
    assert taken == trees[1] == max(rates, key=lambda tree: rates[tree])
    assert tuple(rates) == trees
    # One round before two that count.
    assert len(answers) == 9


def test_candidates_are_different_trees() -> None:
    assert len(set(TREES)) == len(TREES)
