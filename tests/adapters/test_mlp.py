"""The MLP adapter against its matrices written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vispec.adapters import MlpAdapter


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_it_goes_down_and_up_again(layers: int) -> None:
    torch.manual_seed(0)
    made, visual = MlpAdapter(8, 3, layers), torch.randn(2, 5, 8)
    x, matrices = visual, [m for m in made.map if isinstance(m, torch.nn.Linear)]
    assert len(matrices) == layers
    assert {m.out_features for m in matrices[:-1]} == {3}
    for matrix in matrices[:-1]:
        x = (x @ matrix.weight.T + matrix.bias).clamp(min=0)
    expected = x @ matrices[-1].weight.T + matrices[-1].bias
    torch.testing.assert_close(made(visual).tokens, expected)


def test_its_loss_is_how_far_real_tokens_are_from_what_went_in() -> None:
    torch.manual_seed(0)
    made, visual = MlpAdapter(8, 3, reconstruct=0.5), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    found = made(visual, mask)
    assert found.loss is not None
    real = [(found.tokens[0], visual[0]), (found.tokens[1, :2], visual[1, :2])]
    each = torch.stack([F.smooth_l1_loss(*one) for one in real])
    torch.testing.assert_close(found.loss, 0.5 * each)
    assert made.eval()(visual, mask).loss is None
