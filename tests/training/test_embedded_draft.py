"""The recipe of the embedded draft, at the size of a toy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import talking
import vispec
from vispec.decoding.tree import TreeShape
from vispec.drafts import EagleDraft
from vispec.errors import VispecError
from vispec.training import scenes
from vispec.training.recipes import embedded_draft as recipe


@pytest.mark.slow
def test_the_recipe_makes_a_draft_that_loads_and_asks_nothing_twice(
    two_photo_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "TREES", (TreeShape(4, 3, 1), TreeShape(8, 3, 3)))
    target = talking.save(tmp_path / "target", max_position_embeddings=512)
    work, out = tmp_path / "work", tmp_path / "out"
    arguments = [
        "--target", str(target), "--data", str(two_photo_sets), "--work", str(work),
        "--out", str(out),
        "--scenes", "6", "--photos", "4", "--texts", "4", "--heldout", "4",
        "--text-minutes", "0.03", "--multimodal-minutes", "0.03", "--max-new-tokens", "12",
    ]  # fmt: skip

    with monkeypatch.context() as patch:  # killed before any training

        def dies(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(recipe, "run_stage", dies)
        with pytest.raises(KeyboardInterrupt):
            recipe.main(arguments)
    answers = {path: path.read_bytes() for path in work.glob("answers/*/*.parquet")}
    assert {path.parent.name for path in answers} == {"heldout", "text", "multimodal"}
    recipe.main(arguments)
    assert {path: path.read_bytes() for path in work.glob("answers/*/*.parquet")} == answers

    result = json.loads((work / "vispec" / "result.json").read_text())
    assert sum(row["questions"] for row in result.values()) == 3
    assert set(result) <= {*scenes.TASKS, "photo"}
    assert all(row["acceptance_length"] >= 1 for row in result.values() if row["passes"])
    assert "research use only" in (out / "LICENSE").read_text()
    assert "| photo | 1 |" in (out / "README.md").read_text()
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.get_tensor("fc.weight").dtype == torch.bfloat16
    engine = vispec.load(target, out)
    assert isinstance(engine.draft, EagleDraft)
    assert engine.tree in recipe.TREES
    picture = [talking.picture(0)]
    plain = engine.generate("what ?", picture, max_new_tokens=20, speculate=False)
    assert engine.generate("what ?", picture, max_new_tokens=20).token_ids == plain.token_ids
    for stage in ("text", "multimodal"):
        lines = (work / "vispec" / "stages" / stage / "log.jsonl").read_text().splitlines()
        assert any("heldout_accepted_3" in line for line in lines)

    with pytest.raises(VispecError, match="another run: photos was"):
        recipe.main([*arguments, "--photos", "5"])

    # A draft to compare with learns from the same answers, this one from text alone.
    recipe.main([*arguments, "--kind", "eagle-text", "--out", str(tmp_path / "eagle")])
    assert {path: path.read_bytes() for path in work.glob("answers/*/*.parquet")} == answers
    eagle = vispec.load(target, tmp_path / "eagle").draft
    assert isinstance(eagle, EagleDraft)
    assert eagle.adapter is None
    assert not (work / "eagle-text" / "stages" / "multimodal").exists()
    card = (tmp_path / "eagle" / "README.md").read_text()
    assert "EAGLE" in card
    assert "4 to questions without a picture, sampled at temperature 1. Seed 0." in card
