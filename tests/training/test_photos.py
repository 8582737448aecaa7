"""Photographs load from a folder of the published layout, with varied questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vispec.training import photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("flickr8k", "daquar"):
        (tmp_path / name / "images").mkdir(parents=True)
    flickr, daquar = [], []
    for i in range(60):
        image = f"images/{i}.jpg"
        Image.new("RGB", (40, 30), (i, 90, 20)).save(tmp_path / "flickr8k" / image)
        captions = [f"A dog , number {i} , runs .", "Dog on grass .", "two dogs play"]
        flickr.append({"image": image, "captions": captions, "width": 40, "height": 30})
        daquar.append({"image": image, "question": "how many chairs?", "answers": ["2"]})
        daquar.append({"image": image, "question": "what is there?", "answers": ["garbage_bin"]})
    for name, lines in (("flickr8k", flickr), ("daquar", daquar)):
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / name / "annotations.jsonl").write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", ["flickr8k", "daquar"])
def test_the_two_parts_share_no_image_and_miss_none(folder: Path, name: str) -> None:
    parts = {
        part: {p.path for p in photos.load(folder, name, part)} for part in ("train", "heldout")
    }
    assert not parts["train"] & parts["heldout"]
    assert len(parts["train"] | parts["heldout"]) == 60
    # The shipped weights were trained on the others, so these never change.
    assert {path.name for path in parts["heldout"]} == {"39.jpg", "52.jpg"}


def test_a_photo_is_squashed_to_a_square(folder: Path) -> None:
    photo = photos.load(folder, "flickr8k", "train")[0]
    assert photo.open(24).size == (24, 24)
    assert photo.open(24).mode == "RGB"


def test_captions_are_tidied_and_asked_for_in_many_ways(folder: Path) -> None:
    found = photos.load(folder, "flickr8k", "train")
    answers = [turn.answer for turn in found[0].turns]
    assert any(answer.startswith("A dog, number") for answer in answers)
    assert "Two dogs play." in answers
    assert len({turn.question for photo in found for turn in photo.turns}) > 6


def test_bare_answers_become_sentences(folder: Path) -> None:
    turns = photos.load(folder, "daquar", "train")[0].turns
    assert [(turn.question, turn.answer) for turn in turns] == [
        ("How many chairs?", "There are two."),
        ("What is there?", "It is a garbage bin."),
    ]
    assert photos.answer("what color is it?", ["white"]) == "It is white."
    assert photos.answer("what is on it?", ["lamp", "books"]) == "There are lamp and books."


def test_an_unknown_set_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'coco'.*flickr8k, daquar"):
        photos.load(folder, "coco", "train")
