"""`vispec export` writes what other engines load, and says what it left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from command_line import Pair, Run
from vispec.checkpoints.export import export
from vispec.checkpoints.files import licence
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
    sizes = pair.hidden, 64, 4, 2, pair.vocabulary, pair.vocabulary
    config = Eagle3Config(*sizes, aux_layers=(0, 1, 2))
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


def test_a_target_that_the_draft_does_not_fit_is_refused(
    run: Run, pair: Pair, tmp_path: Path
) -> None:
    config = Eagle3Config(pair.hidden, 64, 4, 2, pair.vocabulary + 1, 9, aux_layers=(0, 1, 2))
    export(Eagle3Draft(config, torch.arange(9)), tmp_path / "draft", "eagle3")
    command = ("export", tmp_path / "draft", tmp_path / "out", "--format", "speculators")
    ran = run(*command, "--target", pair.target)
    assert ran.code == 2
    assert f"a vocabulary of {pair.vocabulary + 1}" in ran.err
    assert not (tmp_path / "out").exists()


def test_the_licence_goes_where_the_weights_go(run: Run, pair: Pair, tmp_path: Path) -> None:
    ran = run("export", "embedded", tmp_path / "own", "--format", "vispec")
    assert "research use" in ran.out
    assert "research use" in (tmp_path / "own" / "LICENSE").read_text()
    card = "---\nlicense: cc-by-4.0\n---\n"
    shutil.copytree(pair.draft, tmp_path / "draft")
    (tmp_path / "draft" / "README.md").write_text(card)
    assert run("export", tmp_path / "draft", tmp_path / "b", "--format", "vispec").code == 0
    assert licence(str(tmp_path / "b")) == "cc-by-4.0"


def test_a_place_that_cannot_be_written_to_is_told(run: Run, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    for place, word in ((tmp_path / "file", "File exists"), (pair.draft, "own folder")):
        ran = run("export", pair.draft, place, "--format", "vispec")
        assert ran.code == 2
        assert word in ran.err
