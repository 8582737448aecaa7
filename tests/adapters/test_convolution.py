"""The convolution adapter against sums written out."""

from __future__ import annotations

import pytest
import torch

from vispec.adapters import ConvolutionAdapter


@pytest.mark.parametrize("n", [1, 3, 4, 6, 7])
def test_each_token_is_a_filter_of_its_neighbours(n: int) -> None:
    torch.manual_seed(0)
    made, visual = ConvolutionAdapter(5, 3).double(), torch.randn(1, n, 5).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    rows = []
    for start in range(0, n, 3):
        filtered = made.filter.bias.clone()
        for offset, token in enumerate(visual[0, start : start + 3]):
            filtered = filtered + made.filter.weight[:, 0, offset] * token
        rows.append(made.mix.weight @ filtered)
    torch.testing.assert_close(made(visual).tokens[0], torch.stack(rows))


def test_it_starts_as_the_mean() -> None:
    visual = torch.randn(2, 6, 5)
    expected = visual.unflatten(1, (2, 3)).mean(2)
    torch.testing.assert_close(ConvolutionAdapter(5, 3)(visual).tokens, expected)
