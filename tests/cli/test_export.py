"""`vispec export` writes what other engines load, and says what it left out."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import Pair, Run
from vispec.checkpoints.export import export
from vispec.checkpoints.registry import plan_of
from vispec.drafts import Eagle3Config, Eagle3Draft


def test_a_draft_is_written_in_the_format_asked_for(run: Run, pair: Pair, tmp_path: Path) -> None:
    ran = run("export", pair.draft, tmp_path / "out", "--format", "vispec", "--target", "me/target")
    assert ran.code == 0
    assert "vispec format" in ran.out
    plan = plan_of(tmp_path / "out")
    assert plan.form == "vispec"
    assert plan.facts["target"] == "me/target"


def test_speculators_are_told_whose_draft_it_is(run: Run, pair: Pair, tmp_path: Path) -> None:
    config = Eagle3Config(pair.hidden, 64, 4, 2, pair.vocabulary, pair.vocabulary)
    export(Eagle3Draft(config), tmp_path / "draft", "eagle3")
    command = ("export", tmp_path / "draft", tmp_path / "out", "--format", "speculators")
    assert "--target" in run(*command).err
    for target, classes in ((pair.target, ["LlavaForConditionalGeneration"]), ("some/where", [])):
        assert run(*command, "--target", target).code == 0
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        verifier = written["speculators_config"]["verifier"]
        assert verifier == {"name_or_path": str(target), "architectures": classes}


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
