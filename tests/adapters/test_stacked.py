"""Adapters one behind the other."""

from __future__ import annotations

import torch

from vispec.adapters import build


def test_each_sees_what_the_one_before_made() -> None:
    torch.manual_seed(0)
    parts = [{"kind": "pooling", "keep": 3}, {"kind": "mlp", "inner": 4}]
    made, visual = build(parts, 6), torch.randn(2, 9, 6)
    pooled = build(parts[0], 6)(visual).tokens
    first, _, second = made.parts[1].map
    expected = second(first(pooled).relu())
    torch.testing.assert_close(made(visual).tokens, expected)


def test_the_first_global_vector_counts_and_losses_add_up() -> None:
    torch.manual_seed(0)
    query = {"kind": "query", "heads": 2, "queries": 4}
    mlp = {"kind": "mlp", "inner": 4, "reconstruct": 1.0}
    made, visual = build([query, mlp, query, mlp], 6), torch.randn(2, 9, 6)
    assert made.has_global
    found = made(visual)
    torch.testing.assert_close(found.globals, made.parts[0](visual).globals)
    first = made.parts[1](made.parts[0](visual).tokens)
    second = made.parts[3](made.parts[2](first.tokens).tokens)
    torch.testing.assert_close(found.loss, first.loss + second.loss)
