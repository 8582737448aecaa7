"""`vispec export` writes what other engines load, and says what it left out."""

from __future__ import annotations

from pathlib import Path

from command_line import Pair, Run
from vispec.checkpoints.registry import plan_of


def test_a_draft_is_written_in_the_format_asked_for(run: Run, pair: Pair, tmp_path: Path) -> None:
    ran = run("export", pair.draft, tmp_path / "out", "--format", "vispec", "--target", "me/target")
    assert ran.code == 0
    assert "vispec format" in ran.out
    plan = plan_of(tmp_path / "out")
    assert plan.form == "vispec"
    assert plan.facts["target"] == "me/target"


def test_what_is_left_out_is_said(run: Run, pair: Pair, tmp_path: Path) -> None:
    command = ("export", pair.draft, tmp_path / "out", "--format", "eagle")
    refused = run(*command)
    assert refused.code == 2
    assert "--closest" in refused.err
    ran = run(*command, "--closest")
    assert ran.code == 0
    assert "vision adapter" in ran.out
    assert plan_of(tmp_path / "out").form == "eagle"


def test_the_embedded_draft_is_exported_by_name(run: Run, tmp_path: Path) -> None:
    ran = run("export", "embedded", tmp_path / "out", "--format", "vispec")
    assert ran.code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_target_is_no_draft(run: Run, pair: Pair, tmp_path: Path) -> None:
    ran = run("export", pair.target, tmp_path / "out", "--format", "eagle")
    assert ran.code == 2
    assert "is not a draft of a known format" in ran.err
