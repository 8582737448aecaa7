"""What a stage asks of a draft is what the trainer is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from drafts.test_reading import ADAPTERS
from training.test_pipeline import KINDS
from vispec.errors import SettingsError
from vispec.training import stages
from vispec.training.drafts import new_draft
from vispec.training.recipe import DraftRecipe, Recipe, StageRecipe

STAGE = StageRecipe(
    name="one", data=["shown"], losses={"kl": 1.0}, learning_rate=3e-3, steps=3, batch=4, bf16=False
)
RECIPE = Recipe(target="a target", data={}, stages=[])


@pytest.mark.parametrize("kind", KINDS)
def test_muon_trains_the_matrices_where_a_stage_says_so(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Looking(stages.Trainer):
        def run(self) -> Any:
            made.append(self)

    monkeypatch.setattr(stages, "Trainer", Looking)
    target = tiny.target()
    wish = DraftRecipe(**KINDS[kind][0])
    fewer = torch.arange(30) if wish.vocabulary else None
    draft: Any = new_draft(target, wish, token_map=fewer).train()
    for muon in (0.0, 3.0):
        stage = replace(STAGE, muon=muon, name=f"muon {muon}")
        stages.run_stage(draft, target, stage, [["sample"]], [], tmp_path, RECIPE)  # type: ignore[list-item]
    alone, with_muon = made
    assert len(alone.optimizers) == 1
    adam, muon_ = with_muon.optimizers
    names = {id(p): name for name, p in draft.named_parameters()}
    taken = {names[id(p)] for group in muon_.param_groups for p in group["params"]}
    left = {names[id(p)] for group in adam.param_groups for p in group["params"]}
    assert taken | left == set(names.values())
    assert not taken & left
    assert muon_.param_groups[0]["lr"] == pytest.approx(3 * adam.param_groups[0]["lr"])
    assert {n for n in left if n.endswith("lm_head.weight") or "norm" in n} == {
        n for n in names.values() if n.endswith("lm_head.weight") or "norm" in n
    }
    assert all(draft.get_parameter(name).ndim == 2 for name in taken)
    if kind != "medusa":
        assert {n for n in names.values() if n.endswith("_proj.weight")} <= taken


def test_an_adapter_without_weights_cannot_be_trained_alone(tmp_path: Path) -> None:
    target = tiny.target()
    draft = new_draft(target, DraftRecipe(adapter=ADAPTERS["hidden"]))
    stage = replace(STAGE, train="adapter")
    with pytest.raises(SettingsError, match="nothing that learns"):
        stages.run_stage(draft, target, stage, [], [], tmp_path, RECIPE)


def test_an_adapter_that_there_is_not_cannot_be_trained(tmp_path: Path) -> None:
    stage = replace(STAGE, train="adapter")
    with pytest.raises(SettingsError, match="there is no adapter"):
        stages.run_stage(tiny.draft(queries=None), tiny.target(), stage, [], [], tmp_path, RECIPE)
