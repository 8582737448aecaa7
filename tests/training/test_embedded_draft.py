"""The recipe of the embedded draft, at the size of a toy."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import talking
import tiny
import vispec
from vispec.adapters import QueryAdapter
from vispec.decoding.tree import TreeShape
from vispec.drafts import EagleDraft
from vispec.errors import VispecError
from vispec.training import scenes
from vispec.training.recipes import embedded_draft as recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photographs in the layout of the two sets."""
    lines: dict[str, list[dict[str, object]]] = {"flickr8k": [], "daquar": []}
    for name, found in lines.items():
        (tmp_path / name / "images").mkdir(parents=True)
        for i in range(40):
            image = f"images/{i}.jpg"
            Image.new("RGB", (20, 16), (i, 90, 20)).save(tmp_path / name / image)
            text: dict[str, object] = (
                {"captions": ["a dog runs .", "two dogs ."], "width": 20, "height": 16}
                if name == "flickr8k"
                else {"question": "how many chairs?", "answers": ["2"]}
            )
            found.append({"image": image} | text)
        text_lines = "\n".join(json.dumps(line) for line in found)
        (tmp_path / name / "annotations.jsonl").write_text(text_lines)
    return tmp_path


def test_scene_questions_take_every_task_at_every_temperature_from_one_part() -> None:
    heats = (0.0, 0.0, 1.0)
    found = recipe.scene_questions(36, "train", 100, heats)
    assert len({q.key for q in found}) == 36
    kinds = Counter((q.key.rsplit("-", 1)[1], q.temperature) for q in found)
    for task in scenes.TASKS:
        assert kinds[task, 0.0] == 8
        assert kinds[task, 1.0] == 4
    seeds = [int(q.key.split("-")[1]) for q in found]
    assert seeds == sorted(seeds)
    assert all(scenes.split(seed) == "train" for seed in seeds)


def test_a_scene_question_asks_about_its_own_picture() -> None:
    for question in recipe.scene_questions(3, "heldout", 0, (0.0,)):
        _, seed, task = question.key.split("-")
        scene = scenes.scene(int(seed), task)
        assert question.prompt == scene.question
        (picture,) = question.shown()
        assert picture.tobytes() == scene.image.tobytes()


def test_photo_questions_come_from_both_sets_and_one_part(data: Path) -> None:
    train = recipe.photo_questions(data, 24, "train", (0.0, 1.0))
    unseen = recipe.photo_questions(data, 4, "heldout", (0.0,))
    assert len({q.key for q in [*train, *unseen]}) == 28
    assert {q.temperature for q in train} == {0.0, 1.0}
    assert sum("chairs" in q.prompt for q in train) == 6
    for question in train[:4]:
        (picture,) = question.shown()
        assert picture.size == (scenes.SIZE, scenes.SIZE)


def test_text_questions_are_the_same_ones_without_a_picture() -> None:
    asked = recipe.scene_questions(5, "train", 0, (0.0,))
    alone = recipe.text_questions(asked, 3)
    assert len(alone) == 3
    assert {q.prompt for q in alone} <= {q.prompt for q in asked}
    assert len(recipe.text_questions(asked, 9)) == 5
    assert all(not q.images and q.temperature == 1.0 for q in alone)
    assert not {q.key for q in alone} & {q.key for q in asked}


@pytest.mark.parametrize("queries", [0, 2, 5])
def test_a_new_draft_fits_its_target_and_depends_on_its_seed(queries: int) -> None:
    target = tiny.target(torch.float32)
    draft = recipe.new_draft(target, queries, seed=1)
    draft.check(target)
    assert draft.config.num_key_value_heads == target.text_config.num_key_value_heads
    if queries:
        assert isinstance(draft.adapter, QueryAdapter)
        assert draft.adapter.q.shape[0] == queries
    else:
        assert draft.adapter is None
    same, other = (recipe.new_draft(target, queries, seed=seed) for seed in (1, 2))
    assert torch.equal(draft.fc.weight, same.fc.weight)
    assert not torch.equal(draft.fc.weight, other.fc.weight)


@pytest.mark.slow
def test_the_recipe_makes_a_draft_that_loads_and_asks_nothing_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "TREES", (TreeShape(4, 3, 1), TreeShape(8, 3, 3)))
    target = talking.save(tmp_path / "target", max_position_embeddings=512)
    work, out = tmp_path / "work", tmp_path / "out"
    arguments = [
        "--target", str(target), "--data", str(data), "--work", str(work), "--out", str(out),
        "--scenes", "6", "--photos", "4", "--texts", "4", "--heldout", "4",
        "--text-minutes", "0.03", "--multimodal-minutes", "0.03", "--max-new-tokens", "12",
    ]  # fmt: skip

    with monkeypatch.context() as patch:  # killed before any training

        def dies(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(recipe, "train", dies)
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
        lines = (work / "vispec" / stage / "log.jsonl").read_text().splitlines()
        assert any("heldout_accepted_3" in line for line in lines)

    with pytest.raises(VispecError, match="another run: photos was"):
        recipe.main([*arguments, "--photos", "5"])

    # A draft to compare with learns from the same answers, this one from text alone.
    recipe.main([*arguments, "--kind", "eagle-text", "--out", str(tmp_path / "eagle")])
    assert {path: path.read_bytes() for path in work.glob("answers/*/*.parquet")} == answers
    eagle = vispec.load(target, tmp_path / "eagle").draft
    assert isinstance(eagle, EagleDraft)
    assert eagle.adapter is None
    assert not (work / "eagle-text" / "multimodal").exists()
    card = (tmp_path / "eagle" / "README.md").read_text()
    assert "EAGLE" in card
    assert "4 to questions without a picture, sampled at temperature 1. Seed 0." in card
