"""The recipe of the embedded draft, at the size of a toy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import talking
import vispec
from vispec.drafts import EagleDraft
from vispec.drafts.eagle3 import Eagle3Draft
from vispec.training import pipeline, scenes
from vispec.training.questions import Source, questions
from vispec.training.recipe import RECIPES, Recipe, read_recipe
from vispec.training.recipes import embedded_draft, embedded_questions


@pytest.fixture
def asked(two_photo_sets: Path, tmp_path: Path) -> Path:
    counts = ["--scenes", "6", "--photos", "4", "--texts", "4", "--heldout", "4", "--timed", "4"]
    out = tmp_path / "questions"
    embedded_questions.main(["--data", str(two_photo_sets), "--out", str(out), *counts])
    return out


def brief(asked: Path, target: Path, file: Path = RECIPES / "embedded-eagle3.toml") -> Recipe:
    whole = read_recipe(file)
    stages = [replace(stage, minutes=0.03, steps=0) for stage in whole.stages]
    data = {
        name: replace(source, path=str(asked / Path(source.path).name))
        for name, source in whole.data.items()
    }
    draft = whole.draft
    if draft.kind == "eagle3":
        draft = replace(draft, aux_layers=[0, 1, 2], vocabulary=40)
    if draft.adapter is not None:  # three heads do not divide so narrow a target
        draft = replace(draft, adapter={**draft.adapter, "heads": 2})
    return replace(
        whole, target=str(target), draft=draft, stages=stages, data=data, max_new_tokens=12
    )


@pytest.mark.slow
def test_the_recipes_make_a_draft_that_loads_with_its_card_and_licence(
    asked: Path, tmp_path: Path
) -> None:
    target = talking.save(tmp_path / "target", max_position_embeddings=512)
    begun, run, out = tmp_path / "begun", tmp_path / "run", tmp_path / "out"
    pipeline.train(brief(asked, target), begun, command="vispec train embedded-eagle3")
    joined, init = brief(asked, target, RECIPES / "embedded.toml"), str(begun / "draft")
    pipeline.train(joined, run, command="vispec train embedded --init", init=init)
    folders = ["--run", str(run), "--begun", str(begun), "--out", str(out)]
    embedded_draft.main([*folders, "--questions", str(asked)])

    assert "research use only" in (out / "LICENSE").read_text()
    card = (out / "README.md").read_text()
    assert "by `vispec train embedded-eagle3`, then `vispec train embedded --init`" in card
    assert "over 40 of the target's tokens, and an adapter of 1 query, beside every" in card
    assert "| photo | 1 |" in card
    assert "10 to the questions multimodal. Seed 0." in card
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.get_tensor("fc.weight").dtype == torch.bfloat16
    engine = vispec.load(target, out)
    assert isinstance(engine.draft, Eagle3Draft)
    assert engine.tree in pipeline.SHAPES
    picture = [talking.picture(0)]
    plain = engine.generate("what ?", picture, max_new_tokens=20, speculate=False)
    assert engine.generate("what ?", picture, max_new_tokens=20).token_ids == plain.token_ids
    for stage in ("multimodal", "joined"):
        assert f"* {stage}: " in card
        assert f"| {stage} | " in card
    stated = json.loads((out / "provenance.json").read_text())
    assert stated["recipe"]["target"] == str(target)


@pytest.mark.slow
def test_drafts_to_compare_with_learn_from_the_same_answers(asked: Path, tmp_path: Path) -> None:
    target = talking.save(tmp_path / "target", max_position_embeddings=512)
    cache, begun = tmp_path / "cache", str(tmp_path / "begun" / "draft")
    pipeline.train(brief(asked, target), tmp_path / "begun", cache=cache)
    answers = {path: path.read_bytes() for path in cache.rglob("*.parquet")}
    folder = Path(__file__).parents[2] / "benchmarks" / "drafts"
    for name, init in (("eagle3", begun), ("eagle-text", None)):
        other = brief(asked, target, folder / f"{name}.toml")
        pipeline.train(other, tmp_path / name, cache=cache, init=init)
        assert all(path.read_bytes() == before for path, before in answers.items())
        assert not list((tmp_path / name).rglob("*.parquet"))
        eagle = vispec.load(target, tmp_path / name / "draft").draft
        assert isinstance(eagle, EagleDraft if name == "eagle-text" else Eagle3Draft)
        assert eagle.adapter is None


def test_acceptance_is_told_by_task(asked: Path) -> None:
    engine = vispec.load("embedded", "embedded")
    timed = questions(Source(str(asked / "timed.jsonl")), "timed")
    found = embedded_draft.acceptance(engine, timed)
    assert sum(row["questions"] for row in found.values()) == len(timed)
    assert set(found) <= {*scenes.TASKS, "photo"}
    assert all(row["acceptance_length"] >= 1 for row in found.values())
