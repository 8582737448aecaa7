"""Batched Muon takes the same steps as torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vispec.training.muon import Muon


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_steps_equal_those_of_torch(adjust: str) -> None:
    torch.manual_seed(0)
    shapes = [(8, 8), (8, 8), (24, 8), (8, 24), (24, 8)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    options = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust}
    one, other = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        # Both iterate in bfloat16, whose products depend on how they are grouped.
        torch.testing.assert_close(p, q, atol=2e-3, rtol=0)


def test_its_state_is_torchs() -> None:
    parameters = [nn.Parameter(torch.randn(4, 6))]
    one = Muon(parameters, lr=0.1)
    parameters[0].grad = torch.randn(4, 6)
    one.step()
    torch.optim.Muon(parameters, lr=0.1).load_state_dict(one.state_dict())


def test_a_parameter_without_gradient_stays() -> None:
    kept, moved = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
    before = kept.detach().clone()
    optimizer = Muon([kept, moved], lr=0.1)
    moved.grad = torch.randn(4, 4)
    optimizer.step()
    assert torch.equal(kept, before)
