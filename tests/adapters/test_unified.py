"""One core serves targets of different widths, and learns from all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from training.test_draft import samples
from vispec.adapters import UnifiedAdapter, build
from vispec.drafts import EagleConfig, EagleDraft
from vispec.errors import SettingsError
from vispec.training.draft import Batches, Stage
from vispec.training.trainer import Settings, Trainer
from vispec.training.unified import InTurn, SharedStages, share, split_turn, weigh_turn

CORE = {"kind": "query", "heads": 2, "queries": 3}
SHARED = {"kind": "unified", "width": 12, "parts": [CORE]}


def draft(**settings: object) -> EagleDraft:
    adapter = build({**SHARED, **settings}, tiny.HIDDEN)
    return EagleDraft(EagleConfig(tiny.HIDDEN, 48, 4, 2, tiny.VOCAB), adapter).double()


def test_images_go_through_the_shared_width_and_back() -> None:
    torch.manual_seed(0)
    made, visual = build(SHARED, 20), torch.randn(2, 7, 20)
    assert isinstance(made, UnifiedAdapter)
    inner = made.core(visual @ made.enter.weight.T)
    found = made(visual)
    torch.testing.assert_close(found.tokens, inner.tokens @ made.leave.weight.T)
    torch.testing.assert_close(found.globals, inner.globals @ made.leave.weight.T)


def test_the_core_learns_from_every_target(tmp_path: Path) -> None:
    torch.manual_seed(0)
    drafts = [draft(), draft()]
    before = [d.adapter.core.q.detach().clone() for d in drafts]
    assert not torch.equal(*before)
    share(drafts)
    assert drafts[0].adapter.core is drafts[1].adapter.core
    stages = [Stage(d.train(), tiny.target(), {"kl": 1.0}) for d in drafts]
    module = SharedStages(stages)
    seen: list[int] = []
    order = InTurn([Batches(samples(), 2, seed) for seed in range(2)])
    Trainer(
        module,
        lambda step: (seen.append(step % 2), order(step))[1],
        lambda model, turn: model(turn),
        Settings(tmp_path, 1e-3, budget_steps=4, autocast=False),
        split=split_turn,
        load=order.load,
        weigh=weigh_turn,
    ).run()
    assert seen == [0, 1, 0, 1]
    assert not torch.equal(drafts[1].adapter.core.q, before[0])
    for turn in (0, 1):
        ((_, batch),) = order.load(order(turn))
        loss, numbers = module((turn, batch))
        module.zero_grad()
        loss.backward()
        assert drafts[0].adapter.core.q.grad.abs().max() > 0
        assert drafts[1 - turn].fc.weight.grad is None
        assert f"accuracy_1_of_{turn}" in numbers


def test_what_cannot_share_is_told() -> None:
    with pytest.raises(SettingsError, match="no unified adapter"):
        share([draft(), tiny.draft()])
    with pytest.raises(SettingsError, match="cores differ"):
        share([draft(), draft(width=8)])
    with pytest.raises(SettingsError, match="one core, not 2"):
        draft(parts=[CORE, CORE])
