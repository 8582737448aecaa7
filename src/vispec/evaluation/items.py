"""Held-out items: a picture, a question and what is true of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from PIL import Image

from vispec.training import photos, scenes
from vispec.training.scene_words import WORDS

TASKS = (*scenes.TASKS, "photo")
WORDS_TASK = "words"
"""Readings of dictionary words, beside those of the task "read", whose texts are random too."""


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    Attributes:
        task: one of `TASKS`, or `WORDS_TASK`.
        answer: the true answer; of a photograph, its first caption.
        references: all captions of a photograph.
    """

    task: str
    image: Image.Image
    question: str
    answer: str
    references: tuple[str, ...] = ()


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
    return [
        _scene(seed, task)
        for task in scenes.TASKS
        for seed in islice(scenes.seeds(part, first), count)
    ]


def word_items(part: str, count: int) -> list[Item]:
    """`count` pictures of dictionary words to be read."""
    seeds = (seed for seed in scenes.seeds(part) if _all_words(scenes.dialogue(seed, "read")))
    return [replace(_scene(seed, "read"), task=WORDS_TASK) for seed in islice(seeds, count)]


def _scene(seed: int, task: str) -> Item:
    sample = scenes.scene(seed, task)
    return Item(task, sample.image, sample.question, sample.answer)


def _all_words(dialogue: scenes.Dialogue) -> bool:
    parts = dialogue.facts.written.lower().split()
    return bool(parts) and all(part in WORDS for part in parts)


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
