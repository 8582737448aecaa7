"""Trees know their ancestors, and their shapes say what cannot be."""

from __future__ import annotations

import pytest
import torch

from trees import ancestors, depths, random_parents
from vispec.decoding.tree import SampledShape, Tree, TreeShape, ancestor_mask


def test_the_ancestor_mask_is_what_walking_up_finds_on_random_trees() -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(100):
        n = int(torch.randint(1, 20, (1,), generator=generator))
        parent = random_parents(3, n, generator, depth=(case % 5) / 4)
        expected = ancestors(parent)
        deepest = int(depths(parent).max())
        for bound in {deepest, deepest + 1, n, 2 * n}:
            assert torch.equal(ancestor_mask(parent, bound), expected), (case, bound)


def test_several_roots_in_one_row_do_not_see_each_other() -> None:
    parent = torch.tensor([[-1, 0, -1, 2, 3]])
    assert torch.equal(ancestor_mask(parent, 2), ancestors(parent))


def test_the_deepest_chain_sees_everything_before_it() -> None:
    for n in (1, 2, 3, 4, 5, 8, 9, 17, 64, 65):
        chain = torch.arange(-1, n - 1)[None]
        lower = torch.ones(n, n, dtype=torch.bool).tril()[None]
        assert torch.equal(ancestor_mask(chain, n - 1), lower)


def test_a_trees_own_depth_bounds_its_mask() -> None:
    parent = torch.tensor([[-1, 0, 0, 1]])
    tree = Tree(torch.arange(4)[None], parent, depths(parent), 2, torch.zeros(1, 4))
    assert torch.equal(ancestor_mask(tree.parent, tree.max_depth), ancestors(parent))


def test_a_root_alone_is_a_tree_that_proposes_nothing() -> None:
    tree = Tree.root(torch.tensor([5, 7]))
    assert tree.size == 1
    assert tree.max_depth == 0
    assert tree.token.tolist() == [[5], [7]]
    assert tree.parent.tolist() == [[-1], [-1]]
    assert tree.depth.tolist() == [[0], [0]]
    assert tree.logprob.tolist() == [[0.0], [0.0]]
    assert ancestor_mask(tree.parent, tree.max_depth).tolist() == [[[True]], [[True]]]
    assert tree.proposal is None
    assert tree.shape is None


def test_a_chain_is_a_tree_of_width_one() -> None:
    assert TreeShape.chain(5) == TreeShape(size=6, depth=5, width=1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": 1}, ["size", "1", "at least 2"]),
        ({"size": -4}, ["size", "-4", "at least 2"]),
        ({"depth": 0}, ["depth", "0", "at least 1"]),
        ({"width": 0}, ["width", "0", "at least 1"]),
        ({"width": -1}, ["width", "-1", "at least 1"]),
    ],
)
def test_an_impossible_tree_shape_is_refused_by_name_and_value(
    wrong: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(ValueError, match="tree") as error:
        TreeShape(**wrong)
    assert all(word in str(error.value) for word in words)


def test_a_chain_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        TreeShape.chain(0)


@pytest.mark.parametrize("branching", [(), (0,), (2, 0, 1), (3, -1)])
def test_an_impossible_branching_is_refused_with_its_value(branching: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="branching") as error:
        SampledShape(branching)
    assert str(branching) in str(error.value)


@pytest.mark.parametrize("branching", [(1,), (1, 1, 1), (3, 2), (2, 1, 4), (4, 4, 4)])
def test_a_sampled_shape_numbers_its_levels_as_counting_does(branching: tuple[int, ...]) -> None:
    shape = SampledShape(branching)
    level, starts, count = [0], [0], 1
    for children in branching:
        starts.append(count)
        level = [node for node in level for _ in range(children)]
        count += len(level)
    assert shape.level_starts == [*starts, count]
    assert shape.size == count
    assert shape.depth == len(branching)
