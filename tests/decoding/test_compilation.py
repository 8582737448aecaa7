"""Many shapes and several models stay compiled."""

from __future__ import annotations

import pytest
import torch

from vispec.decoding.compilation import compiled


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
