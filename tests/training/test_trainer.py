"""The trainer survives being killed and ends when it was told to."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vispec.training.trainer import Progress, Settings, Trainer, rate


def batches(step: int) -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def loss(model: nn.Linear, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
    # Random noise in the loss: a resumed run must also continue the random state.
    return ((model(batch) - 1) ** 2).mean() + 0.1 * (torch.rand(3) * model.weight[0, 0]).sum(), {}


def fresh() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def settings(folder: Path, **changes: Any) -> Settings:
    chosen = {"budget_steps": 12, "checkpoint_s": 0.0, "autocast": False, **changes}
    return Settings(folder, 1e-2, **chosen)


@pytest.mark.parametrize("killed_at", [1, 5, 11])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, killed_at: int
) -> None:
    whole = fresh()
    Trainer(whole, batches, loss, settings(tmp_path / "whole")).run()

    def dies(step: int) -> Tensor:
        if step == killed_at:
            raise KeyboardInterrupt
        return batches(step)

    with pytest.raises(KeyboardInterrupt):
        Trainer(fresh(), dies, loss, settings(tmp_path / "killed")).run()
    torch.manual_seed(99)
    resumed = nn.Linear(4, 2)
    progress = Trainer(resumed, batches, loss, settings(tmp_path / "killed")).run()
    assert progress.step == 12
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_evaluating_and_publishing_do_not_change_the_training(tmp_path: Path) -> None:
    plain = fresh()
    Trainer(plain, batches, loss, settings(tmp_path / "plain")).run()

    def judge(model: nn.Module) -> dict[str, float]:
        return {"heldout": torch.rand(1).item()}

    def publish(model: nn.Module, progress: Progress) -> None:
        torch.manual_seed(5)

    watched = fresh()
    Trainer(
        watched, batches, loss, settings(tmp_path / "watched", evaluate_s=0.0), judge,
        publish,
    ).run()  # fmt: skip
    assert torch.equal(plain.weight, watched.weight)


def test_a_finished_run_only_loads_its_weights(tmp_path: Path) -> None:
    first, second = fresh(), nn.Linear(4, 2)
    Trainer(first, batches, loss, settings(tmp_path)).run()
    Trainer(second, lambda step: pytest.fail("trained again"), loss, settings(tmp_path)).run()
    assert torch.equal(first.weight, second.weight)


def test_a_wall_clock_budget_is_kept(tmp_path: Path) -> None:
    began = time.monotonic()
    chosen = settings(tmp_path, budget_steps=None, budget_s=0.3, checkpoint_s=60)
    progress = Trainer(fresh(), batches, loss, chosen).run()
    assert progress.elapsed_s >= 0.3
    assert time.monotonic() - began < 3


def test_the_log_has_the_loss_and_the_held_out_numbers(tmp_path: Path) -> None:
    Trainer(fresh(), batches, loss, settings(tmp_path), lambda model: {"heldout": 2.0}).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] > 0
    assert lines[-1]["heldout"] == 2.0
    assert lines[-1]["share"] == 1.0


def test_the_rate_warms_up_and_comes_down_by_the_share_of_the_budget() -> None:
    assert rate(0.05, 0.1, 0.05) == pytest.approx(0.5)
    assert rate(0.1, 0.1, 0.05) == pytest.approx(1.0)
    assert rate(1.0, 0.1, 0.05) == pytest.approx(0.05)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        return model(batch).sum() * float("nan"), {}

    with pytest.raises(FloatingPointError, match=r"nan at step 0.*0\.01"):
        Trainer(fresh(), batches, broken, settings(tmp_path)).run()


def test_two_budgets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one of budget_s and budget_steps"):
        Settings(tmp_path, 1e-3, budget_s=1.0, budget_steps=2)
