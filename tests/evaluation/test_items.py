"""Items that no training sees, each with a twin whose picture is another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vispec.evaluation import items as module
from vispec.evaluation.items import held_out, swapped, training, word_items
from vispec.training import photos, scenes
from vispec.training.scene_words import WORDS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "flickr8k" / "images").mkdir(parents=True)
    lines = []
    for i in range(120):
        image = f"images/{i}.jpg"
        Image.new("RGB", (20, 16), (i, 90, 20)).save(tmp_path / "flickr8k" / image)
        lines.append({"image": image, "captions": [f"a dog {i} .", "two dogs .", "c", "d", "e"]})
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "flickr8k" / "annotations.jsonl").write_text(text)
    return tmp_path


def test_held_out_items_are_of_the_held_out_parts(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    split = scenes.split
    monkeypatch.setattr(module.scenes, "split", lambda seed: seen.append(split(seed)) or seen[-1])
    found = held_out(data, 3)
    assert [item.task for item in found] == [task for task in module.TASKS for _ in range(3)]
    assert seen.count("heldout") == 9
    captions = {item.answer for item in found if item.task == "photo"}
    expected = {p.captions[0] for p in photos.load(data, "flickr8k", "heldout")[:3]}
    assert captions == expected
    assert all(len(item.references) == 5 for item in found if item.task == "photo")


def test_training_items_are_of_the_part_that_is_learnt_from(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    scene = scenes.scene
    monkeypatch.setattr(
        module.scenes, "scene", lambda seed, task: seeds.append(seed) or scene(seed, task)
    )
    one, other = held_out(data, 3), training(data, 3)
    assert len(other) == len(one)
    assert {scenes.split(seed) for seed in seeds[:9]} == {"heldout"}
    assert {scenes.split(seed) for seed in seeds[9:]} == {"train"}
    expected = {p.captions[0] for p in photos.load(data, "flickr8k", "train")}
    captions = {item.answer for item in other if item.task == "photo"}
    assert captions
    assert captions <= expected


def test_photographs_are_left_out_where_there_are_none(tmp_path: Path) -> None:
    assert {item.task for item in held_out(tmp_path, 1)} == set(scenes.TASKS)
    assert {item.task for item in held_out(None, 1)} == set(scenes.TASKS)


def test_words_to_read_are_dictionary_words_of_the_held_out_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    scene = scenes.scene
    monkeypatch.setattr(
        module.scenes, "scene", lambda seed, task: seen.append(seed) or scene(seed, task)
    )
    found = word_items("heldout", 12)
    assert len(set(seen)) == len(found) == 12
    assert {scenes.split(seed) for seed in seen} == {"heldout"}
    assert {item.task for item in found} == {module.WORDS_TASK}
    told = [item.answer.split('"')[1].lower().split() for item in found if '"' in item.answer]
    assert sum(len(words) for words in told) > 8
    assert all(word in WORDS for words in told for word in words)


def test_a_twin_has_the_picture_of_another_item_of_its_task() -> None:
    found = held_out(None, 3)
    twins = swapped(found)
    for i, (item, twin) in enumerate(zip(found, twins, strict=True)):
        other = found[i // 3 * 3 + (i + 1) % 3]
        assert twin.image is other.image
        assert (twin.question, twin.answer, twin.task) == (item.question, item.answer, item.task)
