"""The pooling adapter against means written out."""

from __future__ import annotations

import pytest
import torch

from vispec.adapters import PoolingAdapter


@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 8, 30])
def test_tokens_are_means_of_runs_as_long_as_each_other(n: int) -> None:
    visual = torch.randn(1, n, 6).double()
    found = PoolingAdapter(6, 4)(visual)
    kept = min(4, n)
    runs = [[i for i in range(n) if i * kept // n == run] for run in range(kept)]
    lengths = [len(run) for run in runs]
    assert max(lengths) - min(lengths) <= 1
    expected = torch.stack([visual[0, run].mean(0) for run in runs])
    torch.testing.assert_close(found.tokens[0], expected)


def test_it_has_no_weights() -> None:
    assert not list(PoolingAdapter(6, 4).parameters())
