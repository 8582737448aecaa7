"""`vispec distill` and `vispec train`: pictures and prompts in, a draft out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import talking
import vispec
from command_line import Pair, Run
from full_disk import full
from vispec.training.distill import read_answers

RECIPE = """
target = "{target}"
max_new_tokens = 10
max_batch = 3
features = "float32"
[draft]
adapter = {{ kind = "query", heads = 4 }}
[data.shown]
path = "{asked}"
limit = 8
[data.heldout]
path = "{asked}"
first = 8
[[stages]]
name = "shown"
data = ["shown"]
losses = {{ soft_cross_entropy = 1.0 }}
learning_rate = 3e-3
steps = 4
batch = 4
bf16 = false
"""


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    folder = tmp_path / "asked"
    folder.mkdir()
    for i in range(12):
        talking.picture(i).save(folder / f"{i:02d}.png")
    (folder / "prompts.txt").write_text("the cat\nwhat is it ?\n")
    return folder


def write(tmp_path: Path, pair: Pair, asked: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE.format(target=pair.target, asked=asked))
    return file


def test_questions_are_answered_and_counted(
    run: Run, pair: Pair, asked: Path, tmp_path: Path
) -> None:
    (asked / "03.png").write_bytes(b"no picture")
    command = ("distill", asked, "--target", pair.target, "--draft", pair.draft)
    command += ("--out", tmp_path / "out", "-n", "9", "--limit", "6", "--batch", "2")
    ran = run(*command)
    assert ran.code == 0
    assert "5 of 6 questions are answered, 1 skipped" in ran.out
    assert "03.png" in ran.err
    found = read_answers(tmp_path / "out")
    engine = vispec.load(pair.target)
    plain = engine.generate("the cat", [asked / "00.png"], max_new_tokens=9, temperature=0)
    assert found["question-00.png"].token_ids == plain.token_ids
    refused = run(*command, "--worker", "2", "--workers", "2")
    assert refused.code == 2
    assert "worker 2 is none of 2" in refused.err
    # Answers of one target are not taken for another's.
    other = talking.save(tmp_path / "other", seed=1)
    command = ("distill", asked, "--target", other, "--out", tmp_path / "out", "-n", "9")
    refused = run(*command, "--limit", "6", "--batch", "2")
    assert refused.code == 2
    assert f"target was '{pair.target}', now it is '{other}'" in refused.err


def test_a_recipes_questions_are_answered_for_its_training(
    run: Run, pair: Pair, asked: Path, tmp_path: Path
) -> None:
    file = write(tmp_path, pair, asked)
    cache = tmp_path / "cache"
    for worker in (0, 1):
        ran = run("distill", file, "--out", cache, "--worker", worker, "--workers", 2)
        assert ran.code == 0, ran.err
    assert "heldout: 4 of 4 questions are answered" in ran.out
    answers = {path: path.stat().st_mtime_ns for path in cache.rglob("*.parquet")}
    assert len(answers) == 2
    ran = run("train", file, "--out", tmp_path / "run", "--cache", cache)
    assert ran.code == 0, ran.err
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.parquet")} == answers
    refused = run("distill", file, "--out", cache, "--limit", "3")
    assert refused.code == 2
    assert "--limit is given" in refused.err


@pytest.mark.parametrize(
    ("option", "value"), [("--limit", "-1"), ("--temperature", "-1"), ("--batch", "many")]
)
def test_numbers_that_mean_nothing_are_refused(
    run: Run, asked: Path, tmp_path: Path, option: str, value: str
) -> None:
    ran = run("distill", asked, "--out", tmp_path / "out", option, value)
    assert ran.code == 2
    assert value in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_recipes_of_several_targets_become_drafts_around_one_core(
    run: Run, pair: Pair, asked: Path, tmp_path: Path
) -> None:
    text = RECIPE.format(target=pair.target, asked=asked)
    adapter = 'adapter = { kind = "query", heads = 4 }'
    core = 'adapter = { kind = "unified", width = 16, parts = [{ kind = "query", heads = 4 }] }'
    assert adapter in text
    files = [tmp_path / "one.toml", tmp_path / "other.toml"]
    for file in files:
        file.write_text(text.replace(adapter, core))
    assert run("train", *files, "--check").out.count("is a recipe for") == 2
    ran = run("train", *files, "--out", tmp_path / "both")
    assert ran.code == 0, ran.err
    assert ran.out.count("tokens a pass, greedy chain, held out") == 2
    for name in ("one", "other"):
        draft = tmp_path / "both" / name / "draft"
        assert run("info", draft, "--target", pair.target).code == 0
    for more, word in (
        (("--auto", "1"), "--auto is given, and several recipes"),
        (("--init", pair.draft), "--init is given, and several recipes"),
        ((files[0],), "two recipes are called 'one'"),
        ((write(tmp_path, pair, asked),), "'mine' has no adapter to share"),
    ):
        refused = run("train", *files, *more, "--out", tmp_path / "no")
        assert refused.code == 2
        assert word in refused.err
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_recipe_becomes_a_draft(run: Run, pair: Pair, asked: Path, tmp_path: Path) -> None:
    file = write(tmp_path, pair, asked)
    ran = run("train", file, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "tokens a pass, greedy chain, held out" in ran.out
    assert run("info", tmp_path / "run" / "draft", "--target", pair.target).code == 0
    (tmp_path / "run" / "draft" / "LICENSE").write_text("mine alone")
    again = run("train", file, "--out", tmp_path / "tuned", "--init", tmp_path / "run" / "draft")
    assert again.code == 0, again.err
    # What it began with is licensed, and so is what became of it.
    assert (tmp_path / "tuned" / "draft" / "LICENSE").read_text() == "mine alone"
    assert "mine alone" in run("info", tmp_path / "tuned" / "draft").out


def test_a_check_names_what_is_not_there(run: Run, pair: Pair, asked: Path, tmp_path: Path) -> None:
    file = write(tmp_path, pair, asked)
    ran = run("train", file, "--check")
    assert (ran.code, ran.out.count("is not here")) == (0, 0)
    file.write_text(file.read_text().replace(f'path = "{asked}"\nlimit', 'path = "nowhere"\nlimit'))
    ran = run("train", file, "--check")
    assert "[data.shown] 'nowhere' is not here: a dataset of the hub?" in ran.out
    refused = run("train", "nope")
    assert refused.code == 2
    assert "there is no recipe 'nope'" in refused.err
    assert "--list" in refused.err


def test_a_recipe_is_checked_before_anything_is_loaded(
    run: Run, pair: Pair, asked: Path, tmp_path: Path
) -> None:
    file = write(tmp_path, pair, asked)
    assert run("train", file, "--check").code == 0
    file.write_text(file.read_text().replace("steps", "stepps"))
    for extra in (("--check",), ("--out", tmp_path / "run")):
        ran = run("train", file, *extra)
        assert ran.code == 2
        assert "stepps" in ran.err
    assert not (tmp_path / "run").exists()
    assert "nowhere" in run("train", write(tmp_path, pair, asked)).err
    assert "no recipe is given" in run("train").err
    assert "there is no recipe" in run("train", "no-such-recipe", "--check").err


def test_recipes_that_come_along_are_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run's folder may be called as its recipe is.
    (tmp_path / "llava-1.5-7b").mkdir()
    monkeypatch.chdir(tmp_path)
    listed = run("train", "--list").out
    for name in ("llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"):
        assert f"{name}: ViSpec for" in listed
        assert run("train", name, "--check").code == 0


def test_what_stops_a_run_is_said_and_nothing_is_lost(
    run: Run, pair: Pair, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write(tmp_path, pair, asked), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("vispec.training.draft.accuracy", lambda *_: float("nan"))

        def broken(*_: Any) -> Any:
            return torch.tensor(float("nan"), requires_grad=True)

        patch.setattr("vispec.training.draft.weighted", lambda losses: broken)
        ran = run("train", file, "--out", out)
        assert ran.code == 2
        assert "the loss is nan at step 0, at shown-" in ran.err
        assert "go on with a lower learning rate than 0.003" in ran.err
        assert "Traceback" not in ran.err
    # As is advised.
    file.write_text(file.read_text().replace("learning_rate = 3e-3", "learning_rate = 1e-3"))
    with monkeypatch.context() as patch:

        def on_a_full_disk(*given: Any, **named: Any) -> None:
            with full():
                vispec.save_pretrained(*given, **named)

        patch.setattr("vispec.training.pipeline.save_pretrained", on_a_full_disk)
        ran = run("train", file, "--out", out)
        assert ran.code == 2
        assert "model.safetensors: " in ran.err
        assert "File too large" in ran.err
        assert "What was finished is kept" in ran.err
    answers = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert run("train", file, "--out", out).code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == answers
    # Another run learns from the same.
    again = run("train", file, "--out", tmp_path / "other", "--cache", out)
    assert again.code == 0
    assert not (tmp_path / "other" / "answers").exists()
    ran = run("train", file, "--out", out, "--auto", "1", "--init", pair.draft)
    assert "no candidate" in ran.err


@pytest.mark.slow
def test_two_processes_train_the_draft_of_one(
    run: Run, pair: Pair, asked: Path, tmp_path: Path
) -> None:
    file = write(tmp_path, pair, asked)
    assert run("train", file, "--out", tmp_path / "one").code == 0
    launcher = "import sys; from accelerate.commands.accelerate_cli import main; main()"
    # What it calls --cpu starts several processes by MPI alone.
    command = [sys.executable, "-c", launcher, "launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "-m", "vispec", "train", str(file)]
    command += ["--out", str(tmp_path / "two")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    one, two = (vispec.from_pretrained(tmp_path / name / "draft") for name in ("one", "two"))
    for key, value in one.state_dict().items():
        # In bfloat16 of float32 sums that were added up in another order.
        torch.testing.assert_close(value.float(), two.state_dict()[key].float(), rtol=0, atol=4e-3)
    answers = [dict(read_answers(tmp_path / n / "answers" / "shown")) for n in ("one", "two")]
    assert answers[0] == answers[1]
    facts = json.loads((tmp_path / "two" / "draft" / "provenance.json").read_text())
    assert "train" in facts["command"]
    assert facts["processes"] == 2


def test_what_is_not_installed_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vispec.cli.options.find_spec", lambda name: None if name[0] == "p" else 1)
    for command in (("train", "--list"), ("distill", "x", "--out", "y")):
        ran = run(*command)
        assert ran.code == 2
        assert "pydantic, pyarrow: pip install 'vispec[train]'" in ran.err
