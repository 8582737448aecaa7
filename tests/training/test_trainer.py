"""The trainer survives being killed and ends when it was told to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn

import spread
from full_disk import full
from vispec.errors import SettingsError
from vispec.training.curves import read_log
from vispec.training.trainer import Progress, Settings, Trainer, rate


def batches(step: int) -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def until(last: int) -> Callable[[int], Tensor]:
    """The same, of a run that is interrupted there."""

    def dies(step: int) -> Tensor:
        if step == last:
            raise KeyboardInterrupt
        return batches(step)

    return dies


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

    with pytest.raises(KeyboardInterrupt):
        Trainer(fresh(), until(killed_at), loss, settings(tmp_path / "killed")).run()
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


def test_what_a_launcher_computes_in_is_left_to_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` states a precision of its own, which would come on top of a stage's."""
    plain = fresh()
    Trainer(plain, batches, loss, settings(tmp_path / "plain")).run()
    for stated in ("bf16", "fp16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", stated)
        AcceleratorState._reset_state(reset_partial_state=True)
        launched = fresh()
        Trainer(launched, batches, loss, settings(tmp_path / stated)).run()
        assert torch.equal(plain.weight, launched.weight)


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


def test_seconds_are_counted_by_the_clock_that_is_given(tmp_path: Path) -> None:
    told = iter(range(1000))
    chosen = settings(
        tmp_path, budget_steps=None, budget_s=20.5, checkpoint_s=60, clock=lambda: float(next(told))
    )
    progress = Trainer(fresh(), batches, loss, chosen).run()
    # Asked once a step, and once where the log was written at the end.
    assert progress.step <= 21
    assert progress.elapsed_s >= 20.5


def test_the_log_has_the_loss_and_the_held_out_numbers(tmp_path: Path) -> None:
    Trainer(fresh(), batches, loss, settings(tmp_path), lambda model: {"heldout": 2.0}).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] > 0
    assert lines[-1]["heldout"] == 2.0
    assert lines[-1]["share"] == 1.0


def test_every_evaluation_has_the_loss_before_it(tmp_path: Path) -> None:
    chosen = settings(tmp_path, evaluate_s=0.0)
    Trainer(fresh(), batches, loss, chosen, lambda model: {"heldout": 2.0}).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [[line["step"] for line in lines if name in line] for name in ("loss", "heldout")]
    assert steps == [list(range(1, 13))] * 2


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


# --- Several parts, several processes -------------------------------------------------------------


def split(batch: list[Tensor], parts: int) -> list[list[Tensor]]:
    return [batch[i::parts] for i in range(min(parts, len(batch)))]


def uneven(step: int) -> list[Tensor]:
    """Samples of different lengths, of which each position counts the same."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(1, 6, (6,), generator=generator).tolist()
    return [torch.randn(n, 4, generator=generator) for n in lengths]


def mean_loss(model: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
    return ((model(torch.cat(batch)) - 1) ** 2).mean(), {}


def weigh(batch: list[Tensor]) -> float:
    return sum(map(len, batch))


def trained(folder: Path, room: int = 99, **changes: Any) -> nn.Linear:
    """Args: room: positions that fit into memory."""
    model = fresh().double()

    def batches(step: int) -> list[Tensor]:
        return [sample.double() for sample in uneven(step)]

    def load(part: list[Tensor]) -> list[list[Tensor]]:
        return [part] if sum(map(len, part)) <= room else [[sample] for sample in part]

    chosen = settings(folder, **changes)
    Trainer(model, batches, mean_loss, chosen, split=split, load=load, weigh=weigh).run()
    return model


@pytest.mark.parametrize("room", [99, 7, 1])
@pytest.mark.parametrize("parts", [1, 2, 3, 6, 8])
def test_a_batch_taken_apart_trains_as_the_whole(tmp_path: Path, parts: int, room: int) -> None:
    whole = trained(tmp_path / "whole")
    apart = trained(tmp_path / "parts", room, accumulate=parts)
    torch.testing.assert_close(apart.weight, whole.weight, rtol=0, atol=1e-12)


SCRIPT = """
import sys
import torch
from pathlib import Path
from accelerate import PartialState
sys.path[:0] = {path!r}
import spread
from training.test_trainer import trained
assert PartialState(cpu=True).num_processes == 2
model = trained(Path(sys.argv[2]), 7)
torch.save(model.state_dict(), sys.argv[2] + "/weights.pt")
spread.leave()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=sys.path))
    spread.run("whole", script, tmp_path / "two")
    found = torch.load(tmp_path / "two" / "weights.pt")
    torch.testing.assert_close(found["weight"], whole.weight.detach(), rtol=0, atol=1e-12)
    lines = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps)), "both processes wrote the log"


ROUNDING = """
import sys
from pathlib import Path
from accelerate import PartialState
sys.path[:0] = {path!r}
import spread
rank = PartialState(cpu=True).process_index
from training.test_trainer import Trainer, fresh, mean_loss, settings, split, uneven, weigh
told = iter([1.0, 2.0, 2.0 + rank, 2.0 + rank, 2.0 + 2 * rank, 2.0 + 2 * rank, *[9.0] * 99])
chosen = settings(
    Path(sys.argv[2]), budget_steps=40, evaluate_steps=1, watch="score", patience=2
)
def judge(_):
    return {{"score": next(told)}}
progress = Trainer(fresh(), uneven, mean_loss, chosen, judge, split=split, weigh=weigh).run()
assert (progress.step, progress.best) == (4, 2.0), progress
spread.leave()
"""


@pytest.mark.slow
def test_processes_that_measure_differently_end_together(tmp_path: Path) -> None:
    """Devices round differently; what the first one measured decides for all."""
    script = tmp_path / "script.py"
    script.write_text(ROUNDING.format(path=sys.path))
    spread.run("whole", script, tmp_path / "run")


SPREAD = """
import sys
import torch
from pathlib import Path
sys.path[:0] = {path!r}
import spread
way, folder, dies = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
kind = getattr(torch, sys.argv[4])
if way:
    spread.WAYS[way]()
from training.test_trainer import Trainer, mean_loss, settings, split, uneven, weigh
from torch import nn
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).to(kind)
seen = []
def judge(judged):
    seen.append(judged(torch.ones(1, 4).to(kind)).sum().item())
    return {{"heldout": seen[-1]}}
def batches(step):
    if step == dies:
        raise KeyboardInterrupt
    return [sample.to(kind) for sample in uneven(step)]
chosen = settings(folder, evaluate_s=0.0)
trainer = Trainer(model, batches, mean_loss, chosen, judge, split=split, weigh=weigh)
if way == "fsdp":
    assert "DTensor" in str(type(next(trainer.running.parameters())))
if way == "deepspeed":
    assert type(trainer.running).__name__ == "DeepSpeedEngine"
try:
    trainer.run()
except KeyboardInterrupt:
    spread.leave()
    sys.exit()
assert all(type(p) is nn.Parameter for p in model.parameters())
torch.save((model.state_dict(), seen), folder / "weights.pt")
spread.leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", spread.PARAMETERS)
def test_weights_that_are_spread_over_processes_train_as_whole_ones(
    tmp_path: Path, way: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPREAD.format(path=sys.path))
    # DeepSpeed knows no float64.
    kind, close = ("float32", 1e-6) if way == "deepspeed" else ("float64", 1e-12)
    spread.run("", script, tmp_path / "one", -1, kind)
    spread.run(way, script, tmp_path / "two", 7, kind)
    spread.run(way, script, tmp_path / "two", -1, kind)
    (one, seen), (two, seen_later) = (
        torch.load(tmp_path / name / "weights.pt") for name in ("one", "two")
    )
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=close)
    # What was judged after the resumption is what was judged there of the whole weights.
    assert 0 < len(seen_later) < len(seen)
    assert seen[-len(seen_later) :] == pytest.approx(seen_later, abs=1e3 * close)


@pytest.mark.parametrize(
    ("kind", "version", "changes", "words"),
    [
        ("MEGATRON_LM", 2, {}, "under Megatron-LM"),
        ("DEEPSPEED", 3, {}, "ZeRO stage 3"),
        ("DEEPSPEED", 2, {"mixed_precision": "bf16"}, "asked to train in bf16"),
        ("DEEPSPEED", 2, {"clip_value": 0.5}, "no single numbers"),
        ("DEEPSPEED", 2, {"muon": True}, "DeepSpeed spreads them"),
        ("FSDP", 1, {}, "under FSDP 1"),
        ("FSDP", 2, {"ema": 0.9}, "running mean"),
        ("FSDP", 2, {"muon": True}, "Muon needs whole matrices"),
    ],
)
def test_what_cannot_train_a_draft_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    version: int,
    changes: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", getattr(DistributedType, kind))
    monkeypatch.setattr(Accelerator, "is_fsdp2", version == 2)
    plugin = SimpleNamespace(zero_stage=version, deepspeed_config={}, enable_msamp=False)
    monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", plugin)
    precision = changes.pop("mixed_precision", "no")
    monkeypatch.setattr(Accelerator, "mixed_precision", precision)
    muon = changes.pop("muon", False)
    with pytest.raises(SettingsError, match=words):
        Trainer(fresh(), batches, loss, settings(tmp_path, **changes), hidden=lambda name, _: muon)


DIES = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from training.test_trainer import Trainer, batches, fresh, loss, settings
def dies(step):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return batches(step)
Trainer(fresh(), dies, loss, settings(Path(sys.argv[1]), **{changes!r})).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}], ids=str)
def test_a_run_that_was_killed_outright_ends_with_the_same_weights(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = fresh()
    Trainer(whole, batches, loss, settings(tmp_path / "whole", **changes)).run()
    script = tmp_path / "script.py"
    script.write_text(DIES.format(path=sys.path, changes=changes))
    for step in (4, 9):
        ran = subprocess.run([sys.executable, script, tmp_path / "killed", str(step)], timeout=300)
        assert ran.returncode == -signal.SIGKILL
    resumed = nn.Linear(4, 2)
    Trainer(resumed, batches, loss, settings(tmp_path / "killed", **changes)).run()
    assert torch.equal(whole.weight, resumed.weight)


def test_a_kill_while_checkpoints_change_places_loses_nothing(tmp_path: Path) -> None:
    whole = fresh()
    Trainer(whole, batches, loss, settings(tmp_path / "whole")).run()

    with pytest.raises(KeyboardInterrupt):
        Trainer(fresh(), until(7), loss, settings(tmp_path / "killed")).run()
    # Between the two renamings, with the next one half written.
    kept = tmp_path / "killed" / "checkpoint"
    kept.rename(tmp_path / "killed" / "checkpoint.old")
    (tmp_path / "killed" / "checkpoint.new").mkdir()
    resumed = nn.Linear(4, 2)
    Trainer(resumed, batches, loss, settings(tmp_path / "killed")).run()
    assert torch.equal(whole.weight, resumed.weight)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(fresh(), batches, loss, settings(tmp_path, budget_steps=4))
    trainer.run()
    before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoint").iterdir()}
    with full(100), pytest.raises(OSError, match=r"checkpoint\.new: "):
        trainer._save()
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoint").iterdir()} == before


def test_a_gradients_numbers_are_limited_where_that_is_asked_for(tmp_path: Path) -> None:
    """And its length where that is."""
    found = {}
    for name, limits in {
        "none": {"clip_norm": 0.0},
        "value": {"clip_norm": 0.0, "clip_value": 0.05},
        "norm": {"clip_norm": 0.05},
    }.items():
        model = fresh()
        Trainer(model, batches, loss, settings(tmp_path / name, budget_steps=1, **limits)).run()
        found[name] = torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )
    assert float(found["none"].abs().max()) > 0.05
    torch.testing.assert_close(found["value"], found["none"].clamp(-0.05, 0.05))
    share = 0.05 / found["none"].norm()
    torch.testing.assert_close(found["norm"], found["none"] * share, rtol=1e-4, atol=0)


# --- Averages, patience, and what is wrong --------------------------------------------------------


def test_the_mean_of_the_weights_is_judged_and_left(tmp_path: Path) -> None:
    judged: list[Tensor] = []

    def judge(model: nn.Module) -> dict[str, float]:
        judged.append(model.weight.detach().clone())  # type: ignore[operator]
        return {"heldout": 1.0}

    seen: list[Tensor] = []

    def noted(model: nn.Linear, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        seen.append(model.weight.detach().clone())
        return loss(model, batch)

    model = fresh()
    Trainer(model, batches, noted, settings(tmp_path, ema=0.5, evaluate_s=0.0), judge).run()
    plain = fresh()
    Trainer(plain, batches, loss, settings(tmp_path / "plain")).run()
    steps = [*seen[1:], plain.weight.detach()]
    mean = steps[0]
    for weight in steps[1:]:
        mean = 0.5 * mean + 0.5 * weight
    torch.testing.assert_close(model.weight.detach(), mean)
    torch.testing.assert_close(judged[-1], mean)


def test_a_run_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    scores = iter([1.0, 3.0, 2.0, 3.0, 2.5, 9.0])
    progress = Trainer(
        fresh(),
        batches,
        loss,
        settings(tmp_path, evaluate_s=0.0, watch="score", patience=3),
        lambda model: {"score": next(scores)},
    ).run()
    assert (progress.step, progress.best) == (5, 3.0)
    again = Trainer(fresh(), batches, loss, settings(tmp_path, watch="score", patience=3))
    assert again.run().step == 5


def test_a_run_that_ends_early_leaves_the_best_weights(tmp_path: Path) -> None:
    scores, seen = iter([1.0, 3.0, 2.0, 2.5]), []

    def judge(model: nn.Module) -> dict[str, float]:
        seen.append(model.weight.detach().clone())  # type: ignore[operator]
        return {"score": next(scores)}

    model = fresh()
    chosen = settings(tmp_path, evaluate_steps=2, watch="score", patience=2)
    progress = Trainer(model, batches, loss, chosen, judge).run()
    assert progress.step == 8
    assert torch.equal(model.weight, seen[1])
    again = nn.Linear(4, 2)
    Trainer(again, batches, loss, chosen).run()
    assert torch.equal(again.weight, seen[1])


def test_a_log_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    dies = until(7)
    chosen = settings(tmp_path, log_s=0.0, checkpoint_s=1e9)
    with pytest.raises(KeyboardInterrupt):
        Trainer(fresh(), dies, loss, chosen).run()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "los')
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    Trainer(fresh(), dies, loss, settings(tmp_path / "b", log_s=0.0, budget_steps=5)).run()
    (tmp_path / "b" / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text())
    Trainer(fresh(), batches, loss, settings(tmp_path / "b", log_s=0.0)).run()
    assert [line["step"] for line in read_log(tmp_path / "b")] == list(range(1, 13))


def test_a_run_that_was_killed_before_any_checkpoint_logs_nothing_twice(tmp_path: Path) -> None:
    dies = until(7)
    chosen = settings(tmp_path, log_s=0.0, checkpoint_s=1e9)
    with pytest.raises(KeyboardInterrupt):
        Trainer(fresh(), dies, loss, chosen).run()
    assert len(read_log(tmp_path)) == 7
    Trainer(fresh(), batches, loss, chosen).run()
    assert [line["step"] for line in read_log(tmp_path)] == list(range(1, 13))


def test_what_is_not_finite_is_named_with_what_is_left(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        return model(batch).sum() * float("nan"), {}

    Trainer(fresh(), batches, loss, settings(tmp_path, budget_steps=3)).run()
    with pytest.raises(FloatingPointError) as error:
        Trainer(
            fresh(), batches, broken, settings(tmp_path), names=lambda batch: "cat-1, dog-7"
        ).run()
    for words in ("nan at step 3", "cat-1, dog-7", str(tmp_path / "checkpoint"), "than 0.01"):
        assert words in str(error.value)
