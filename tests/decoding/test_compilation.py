"""Many shapes and several models stay compiled."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from vispec.decoding.compilation import compiled
from vispec.decoding.tree import TreeShape


class Draft:
    """Something whose compiled pass depends on a shape."""

    def grow(self, x: torch.Tensor, depth: int) -> torch.Tensor:
        for _ in range(depth):
            x = x + 1
        return x


@pytest.mark.slow
def test_more_shapes_than_eight_and_other_drafts_are_compiled_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    for depths in (range(1, 11), range(1, 3)):
        grow = compiled(Draft().grow)
        for depth in depths:
            assert grow(torch.zeros(2), depth).tolist() == [depth, depth]


@pytest.mark.parametrize("constant", [True, False])
def test_whole_numbers_that_change_stay_constants(
    constant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []

    def recorded(graph: torch.fx.GraphModule, inputs: list[Any], **_: Any) -> Any:
        numbers.append(sum(isinstance(given, torch.SymInt | int) for given in inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=recorded))
    top = compiled(lambda x, shape: x.topk(shape.width).values * shape.size, constant=constant)
    for width in (2, 3, 5, 3):
        x = torch.randn(4, 7)
        shape = TreeShape(size=width + 4, width=width)
        assert torch.equal(top(x, shape), x.topk(width).values * (width + 4))
    # By torch's default the second shape makes both numbers unknown ones.
    assert numbers == ([0, 0, 0] if constant else [0, 2])
