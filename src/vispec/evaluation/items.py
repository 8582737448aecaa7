"""Held-out items: a picture, a question and what is true of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from vispec.training import photos, scenes
from vispec.training.scene_words import WORDS

TASKS = (*scenes.TASKS, "photo")


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    Attributes:
        task: one of `TASKS`.
        answer: the true answer; of a photograph, its first caption.
        references: all captions of a photograph.
        words: whether what is to be read is made of dictionary words.
    """

    task: str
    image: Image.Image
    question: str
    answer: str
    references: tuple[str, ...] = ()
    words: bool = False


def held_out(data: Path | None, count: int) -> list[Item]:
    """`count` items of every task that no training sees.

    Photographs are left out unless `data` has a folder `flickr8k`.
    """
    return [*scene_items("heldout", count), *photo_items(data, "heldout", count)]


def training(data: Path | None, count: int) -> list[Item]:
    """As `held_out`, of the part that is trained on."""
    # Far from the seeds that the target is trained on, but of the same part.
    return [
        *scene_items("train", count, first=3_000_000),
        *photo_items(data, "train", count),
    ]


def scene_items(part: str, count: int, first: int = 0) -> list[Item]:
    """`count` items of each of the scenes' tasks, from seed `first` on."""
    found = []
    for task in scenes.TASKS:
        seed = first
        made = 0
        while made < count:
            if scenes.split(seed) == part:
                found.append(_scene(seed, task))
                made += 1
            seed += 1
    return found


def _scene(seed: int, task: str) -> Item:
    sample = scenes.scene(seed, task)
    written = scenes.dialogue(seed, task).facts.written if task == "read" else ""
    parts = re.findall(r"\S+", written.lower())
    known = bool(parts) and all(part in WORDS for part in parts)
    return Item(task, sample.image, sample.question, sample.answer, words=known)


def photo_items(data: Path | None, part: str, count: int) -> list[Item]:
    """`count` photographs of one part, each asked for a short caption."""
    if data is None or not (data / "flickr8k").is_dir():
        return []
    found = []
    for index, photo in enumerate(photos.load(data, "flickr8k", part)[:count]):
        found.append(
            Item(
                "photo",
                photo.open(scenes.SIZE),
                photos.SHORT_QUESTIONS[index % len(photos.SHORT_QUESTIONS)],
                photo.captions[0],
                photo.captions,
            )
        )
    return found


def swapped(items: Sequence[Item]) -> list[Item]:
    """Every question with the picture of the next item of its task."""
    images: dict[int, Image.Image] = {}
    for task in {item.task for item in items}:
        places = [i for i, item in enumerate(items) if item.task == task]
        for place, other in zip(places, [*places[1:], places[0]], strict=True):
            images[place] = items[other].image
    return [replace(item, image=images[i]) for i, item in enumerate(items)]
