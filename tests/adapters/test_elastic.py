"""The elastic adapter chooses one of its parts for every image, and learns to."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vispec.adapters import ElasticAdapter, build
from vispec.adapters.base import Compressed

PARTS = [
    {"kind": "pooling", "keep": 2},
    {"kind": "hidden"},
    {"kind": "query", "heads": 2, "queries": 4},
]


def made() -> ElasticAdapter:
    torch.manual_seed(0)
    adapter = build({"kind": "elastic", "parts": PARTS}, 6)
    assert isinstance(adapter, ElasticAdapter)
    torch.nn.init.normal_(adapter.gate.weight)
    return adapter


def test_the_likeliest_part_of_each_image_is_taken() -> None:
    adapter = made().eval()
    visual, asked = torch.randn(40, 5, 6), torch.randn(40, 6)
    found = adapter(visual, None, asked)
    taken = adapter.gate(torch.cat([visual.mean(1), asked], -1)).argmax(-1).tolist()
    assert set(taken) == {0, 1, 2}
    for row, part in enumerate(taken):
        alone: Compressed = adapter.parts[part](visual[row : row + 1])
        count = alone.tokens.shape[1]
        assert int(found.counts()[row]) == count
        torch.testing.assert_close(found.tokens[row, :count], alone.tokens[0])
        expected = torch.zeros(6) if alone.globals is None else alone.globals[0]
        assert found.globals is not None
        torch.testing.assert_close(found.globals[row], expected)


def test_choices_are_drawn_as_often_as_they_are_likely() -> None:
    adapter, visual = made().train(), torch.randn(1, 5, 6)
    likely = adapter.choice(visual, None, None).softmax(-1)[0]
    found = adapter(visual.expand(4000, -1, -1))
    counts = found.counts()
    shares = torch.stack([(counts == n).float().mean() for n in (2, 0, 3)])
    assert (shares - likely).abs().max() < 0.04


def test_the_gate_learns_which_part_serves() -> None:
    """Images of one kind need their mean; the others' is a burden. What is asked tells which."""
    adapter = made().train()
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(adapter.gate.parameters(), 0.05)
    for _ in range(300):
        visual, kind = torch.randn(32, 4, 6), torch.randint(2, (32,))
        asked = F.one_hot(kind, 6).float()
        tokens = adapter(visual, None, asked).tokens
        reward = (tokens**2).sum((1, 2)) * (1 - 2 * kind)
        optimizer.zero_grad()
        (-reward.mean()).backward()
        optimizer.step()
    adapter.eval()
    visual = torch.randn(64, 4, 6)
    for kind in (0, 1):
        asked = F.one_hot(torch.full((64,), kind), 6).float()
        shown = adapter(visual, None, asked).counts() > 0
        assert shown.float().mean() > 0.9 if kind == 0 else shown.float().mean() < 0.1
