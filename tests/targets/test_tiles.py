"""Images in several pieces are found whole, and frames of a video count as one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from families import END, FAMILIES, IMAGE, START, TILE, WHOLE, Family
from vispec.targets import wrap

X, I = 5, IMAGE  # noqa: E741 - a picture of a prompt: text and image


def index(name: str, ids: list[int], decode: Any = None) -> list[int]:
    family: Family = next(f for f in FAMILIES if f.name == name)
    processor = SimpleNamespace(tokenizer=SimpleNamespace(decode=decode)) if decode else None
    target = wrap(family.model(), processor)
    inputs = {"input_ids": torch.tensor([ids])}
    return target.image_index(inputs, {"image": object()}).tolist()


@pytest.mark.parametrize("name", ["internvl", "video_llava"])
def test_a_span_is_an_image(name: str) -> None:
    assert index(name, [X, I, I, X, X, I]) == [-1, 0, 0, -1, -1, 1]


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_tiles_belong_to_the_whole_that_follows_them(name: str) -> None:
    split = [START, TILE - 1, I, I, START, TILE, I, I, START, WHOLE, I, I, START]
    single = [START, WHOLE, I, I, START]
    first = [-1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1]
    assert index(name, [X, *split, X]) == [-1, *first, -1]
    assert index(name, [*single, X, *split]) == [
        *(-1, -1, 0, 0, -1, -1),
        *(i + 1 if i >= 0 else -1 for i in first),
    ]
    assert index(name, [*single, *single]) == [-1, -1, 0, 0, -1, -1, -1, 1, 1, -1]


def test_tiles_belong_together_until_the_image_is_closed() -> None:
    split = [START, TILE - 1, I, TILE, I, WHOLE, I, END]
    assert index("lfm2_vl", [*split, X, START, I, END]) == [
        *(-1, -1, 0, -1, 0, -1, 0, -1),
        *(-1, -1, 1, -1),
    ]


@pytest.mark.parametrize(
    ("name", "before", "words"),
    [
        (
            "internvl",
            [START],
            ["Frame1: <img>", "</img>\nFrame2: <img>", "</img>\nFrame3: <img>", "</img>and <img>"],
        ),
        (
            "smolvlm",
            [START, WHOLE],
            # Clips of less than a second, and clips whose beginning is skipped.
            [
                "You are provided the following series of two frames\n\nFrame from 00:00:",
                "\nFrame from 00:00:",
                "\n\nthe following series of two frames\n\nFrame from 00:01:",
                "\nFrame from 00:03:",
            ],
        ),
    ],
)
def test_frames_of_a_video_are_one(name: str, before: list[int], words: list[str]) -> None:
    said = dict(enumerate(words, 6))

    def decode(tokens: list[int]) -> str:
        return "".join(said.get(token, "") for token in tokens)

    ids = [token for word in said for token in (word, *before, I, START)]
    found = [i for i in index(name, ids, decode) if i >= 0]
    # The last is another image, or the first frame of another video.
    assert found == ([0, 0, 0, 1] if name == "internvl" else [0, 0, 1, 1])


def test_placeholders_without_pixels_are_text() -> None:
    family = next(f for f in FAMILIES if f.name == "internvl")
    target = wrap(family.model(), None)
    assert target.image_index({"input_ids": torch.tensor([[X, I, X]])}, {}).tolist() == [-1] * 3
