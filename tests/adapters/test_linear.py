"""The linear adapter: one matrix, at first the identity."""

from __future__ import annotations

import torch

from vispec.adapters import LinearAdapter


def test_it_starts_as_the_identity() -> None:
    visual = torch.randn(2, 5, 8)
    assert torch.equal(LinearAdapter(8)(visual).tokens, visual)


def test_every_token_is_mapped_alone() -> None:
    made = LinearAdapter(8)
    torch.nn.init.normal_(made.map.weight)
    visual = torch.randn(2, 5, 8)
    expected = visual @ made.map.weight.T + made.map.bias
    torch.testing.assert_close(made(visual).tokens, expected)
