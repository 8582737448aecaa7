"""What the embedded target is asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from vispec.training import photos, scenes
from vispec.training.questions import Source, questions
from vispec.training.recipes import embedded_questions as recipe


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


def test_photo_questions_come_from_both_sets_and_one_part(two_photo_sets: Path) -> None:
    train = recipe.photo_questions(two_photo_sets, 24, "train", (0.0, 1.0))
    unseen = recipe.photo_questions(two_photo_sets, 4, "heldout", (0.0,))
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


def test_keys_tell_the_task_and_the_picture(two_photo_sets: Path) -> None:
    asked = recipe.scene_questions(len(scenes.TASKS), "train", 0, (0.0,))
    assert [recipe.task_of(q.key) for q in asked] == list(scenes.TASKS)
    assert [recipe.picture_of(q.key) for q in asked] == [q.key.split("-")[1] for q in asked]
    shown = recipe.photo_questions(two_photo_sets, 4, "train", (0.0,))
    assert {recipe.task_of(q.key) for q in shown} == {"photo"}
    assert all(q.key.endswith(f"-{recipe.picture_of(q.key)}") for q in shown)
    assert recipe.task_of("heldout-heldout-scene-17-read") == "read"
    with pytest.raises(ValueError, match="'cat' is no question's key"):
        recipe.task_of("cat")


def test_written_questions_are_the_same_with_the_same_pictures(
    two_photo_sets: Path, tmp_path: Path
) -> None:
    asked = recipe.groups(two_photo_sets, scenes=6, photos=4, texts=3, heldout=6, timed=8)
    recipe.write(asked, tmp_path)
    for name, group in asked.items():
        found = questions(Source(str(tmp_path / f"{name}.jsonl")), name)
        assert [q.key for q in found] == [f"{name}-{name}-{q.key}" for q in group]
        for one, other in zip(found, group, strict=True):
            assert (one.prompt, one.temperature) == (other.prompt, other.temperature)
            own = [Image.open(path).tobytes() for path in one.images]  # type: ignore[arg-type]
            assert own == [picture.tobytes() for picture in other.shown()]  # type: ignore[union-attr]


def test_what_is_learnt_from_is_of_the_part_that_is_trained_on(two_photo_sets: Path) -> None:
    asked = recipe.groups(two_photo_sets, scenes=30, photos=30, texts=9, heldout=9, timed=8)
    for name, group in asked.items():
        part = "train" if name in ("text", "multimodal") else "heldout"
        for key in (question.key for question in group):
            picture = recipe.picture_of(key)
            if recipe.task_of(key) == "photo":
                assert photos.split(f"{picture}.jpg") == part, key
            else:
                assert scenes.split(int(picture)) == part, key


def test_drafts_are_judged_by_other_photographs_than_the_pair_is(
    two_photo_sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "EVALUATED", 1)
    _, other = (p.path.stem for p in photos.load(two_photo_sets, "flickr8k", "heldout"))
    asked = recipe.groups(two_photo_sets, scenes=0, photos=0, texts=0, heldout=24, timed=24)
    shown = [q for n in ("heldout", "timed") for q in asked[n] if recipe.task_of(q.key) == "photo"]
    captioned = [q for q in shown if "chairs" not in q.prompt]
    assert {recipe.picture_of(q.key) for q in captioned} == {other}


def test_nothing_is_timed_that_drafts_were_judged_by(two_photo_sets: Path) -> None:
    asked = recipe.groups(two_photo_sets, scenes=0, photos=0, texts=0, heldout=6, timed=8)
    timed, judged = ({recipe.picture_of(q.key) for q in asked[n]} for n in ("timed", "heldout"))
    assert not timed & judged
    assert sum(recipe.task_of(q.key) != "photo" for q in asked["timed"]) == 6
