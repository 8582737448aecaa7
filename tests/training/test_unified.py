"""Recipes of several targets become drafts around one core."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import talking
import tiny
import vispec
from drafts.test_reading import QUERY
from training.test_pipeline import asked, target, wanted
from vispec.errors import SettingsError, VispecError
from vispec.training import stages
from vispec.training.draft import Stage
from vispec.training.recipe import DraftRecipe, Recipe
from vispec.training.unified import train_together

__all__ = ["asked", "target"]

SHARED: dict[str, Any] = {"kind": "unified", "width": 8, "parts": [QUERY]}


WIDER = 48
"""Of the other target's hidden states."""


@pytest.fixture(scope="module")
def other_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    return talking.save(folder, max_position_embeddings=512, hidden_size=WIDER)


def recipes(target: Path, other: Path, asked: Path) -> dict[str, Recipe]:
    """The other one learns from fewer pictures."""
    one = wanted(target, asked, adapter=SHARED)
    data = one.data | {"shown": replace(one.data["shown"], limit=4)}
    return {"one": one, "other": replace(one, target=str(other), seed=1, data=data)}


@pytest.mark.slow
def test_drafts_of_several_targets_have_one_core(
    target: Path, other_target: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other widths, and also where it was interrupted."""
    given = recipes(target, other_target, asked)
    found = train_together(given, tmp_path / "whole")
    drafts = [vispec.from_pretrained(tmp_path / "whole" / name / "draft") for name in given]
    core, other = ({k: v for k, v in d.state_dict().items() if ".core." in k} for d in drafts)
    assert core
    assert all(torch.equal(v, other[k]) for k, v in core.items())
    widths = [d.adapter.enter.weight.shape for d in drafts]
    assert widths == [(SHARED["width"], tiny.HIDDEN), (SHARED["width"], WIDER)]
    picture = [talking.picture(30)]
    for name, recipe in given.items():
        place = tmp_path / "whole" / name / "draft"
        engine = vispec.load(recipe.target, place, dtype=torch.float64)
        plain = engine.generate("the cat", picture, max_new_tokens=12, speculate=False)
        assert engine.generate("the cat", picture, max_new_tokens=12).token_ids == plain.token_ids
    for name, numbers in found.items():
        origin = json.loads((tmp_path / "whole" / name / "draft/provenance.json").read_text())
        assert origin["heldout"] == numbers
        assert origin["answers"]["shown"] == (6 if name == "one" else 4)
        assert origin["together"] == (["other"] if name == "one" else ["one"])
        assert (tmp_path / "whole" / name / "curves.png").stat().st_size > 1000
    last = given["one"].stages[-1]
    lines = (tmp_path / "whole" / "stages" / last.name / "log.jsonl").read_text().splitlines()
    line = json.loads(lines[-1])
    # As many steps for each of them.
    assert line["step"] == 2 * last.steps
    lengths = [line[f"heldout_acceptance_length_of_{whose}"] for whose in (0, 1)]
    assert line["heldout_acceptance_length"] == pytest.approx(sum(lengths) / 2)

    with monkeypatch.context() as patch:
        learnt: list[str] = []

        def dies(stage: Any, samples: Any) -> Any:
            learnt.append(last.name if stage.self_fed else "one")
            if learnt.count(last.name) == 4:
                raise KeyboardInterrupt
            return forward(stage, samples)

        forward = Stage.forward
        patch.setattr(Stage, "forward", dies)
        # Of every step, so that it ends in the middle of a stage.
        often = functools.partial(stages.Settings, checkpoint_s=0.0)
        patch.setattr(stages, "Settings", often)
        with pytest.raises(KeyboardInterrupt):
            train_together(given, tmp_path / "killed")
    assert train_together(given, tmp_path / "killed") == found
    for name, draft in zip(given, drafts, strict=True):
        again = vispec.from_pretrained(tmp_path / "killed" / name / "draft")
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in draft.state_dict().items())
    faster = [replace(stage, learning_rate=1.0) for stage in given["one"].stages]
    changed = {name: replace(recipe, stages=faster) for name, recipe in given.items()}
    with pytest.raises(VispecError, match="another run"):
        train_together(changed, tmp_path / "killed")


def test_recipes_that_share_nothing_are_refused(target: Path, asked: Path, tmp_path: Path) -> None:
    given = recipes(target, target, asked)
    with pytest.raises(SettingsError, match="1 recipe shares no adapter"):
        train_together({"one": given["one"]}, tmp_path)
    other = given | {"other": replace(given["other"], draft=DraftRecipe(adapter=QUERY))}
    with pytest.raises(SettingsError, match="'other' has no adapter to share"):
        train_together(other, tmp_path)
    longer = [replace(given["one"].stages[0], steps=99), *given["one"].stages[1:]]
    wider = replace(given["other"], draft=DraftRecipe(adapter=SHARED | {"width": 9}))
    with pytest.raises(SettingsError, match="have other adapters"):
        train_together(given | {"other": wider}, tmp_path)
    with pytest.raises(SettingsError, match="a recipe is called 'stages'"):
        train_together(given | {"stages": given["one"]}, tmp_path)
    with pytest.raises(SettingsError, match="stages of other settings"):
        train_together(given | {"other": replace(given["other"], stages=longer)}, tmp_path)
    assert not list(tmp_path.iterdir())
