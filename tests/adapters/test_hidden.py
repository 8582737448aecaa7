"""The hidden adapter shows nothing."""

from __future__ import annotations

import torch

from vispec.adapters import HiddenAdapter


def test_nothing_is_left_of_an_image() -> None:
    found = HiddenAdapter(6)(torch.randn(3, 9, 6))
    assert found.tokens.shape == (3, 0, 6)
    assert found.globals is None
    assert found.counts().tolist() == [0, 0, 0]
