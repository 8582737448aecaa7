"""Photographs with text: loaders for two research datasets kept in a folder outside the project.

Layout of the folder: ``<name>/annotations.jsonl``, one object a line, and ``<name>/images/``.

* ``flickr8k``: ``image``, ``captions`` (about five). One dialogue an image.
* ``daquar``: ``image``, ``question``, ``answers`` (a list, all of them true). The lines of one
  image become one dialogue.

Both are for research use only; what is trained on them inherits that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

from vispec.training.scene_words import NUMBERS, Turn, article, listing

SHORT_QUESTIONS = (
    "Describe the photo.",
    "What is in the picture?",
    "What do you see?",
    "Write a caption.",
    "What does this photo show?",
    "What is happening here?",
    "Describe this image in one sentence.",
)
LONG_QUESTIONS = (
    "Describe the photo in detail.",
    "Tell me more about this photo.",
    "Give a long description of the photo.",
    "Describe the photo in a few sentences.",
)


@dataclass(frozen=True)
class Photo:
    """One photograph on disk with its dialogue.

    ``source`` is the dataset's name; ``captions`` are all that it has, tidied.
    """

    path: Path
    turns: tuple[Turn, ...]
    source: str
    captions: tuple[str, ...] = ()

    def open(self, size: int) -> Image.Image:
        """Decode as RGB squashed to ``size`` x ``size`` pixels, like the target's processor."""
        with Image.open(self.path) as image:
            return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


_ANYWHERE = "and are for from her his its she that the their there they this while with"
_UNTELLING = frozenset(_ANYWHERE.split())


def telling_words(text: str) -> list[str]:
    """The words of a text that say something of a picture, as often as they are said."""
    words = re.findall("[a-z]+", text.lower())
    return [word for word in words if len(word) > 2 and word not in _UNTELLING]


def split(name: str) -> str:
    """``"heldout"`` for one image name in twenty, by a hash of the name, else ``"train"``."""
    digest = hashlib.sha256(f"photo {Path(name).name}".encode()).digest()
    return "heldout" if digest[0] < 13 else "train"


def load(folder: Path | str, name: str, part: str) -> list[Photo]:
    """All photographs of ``flickr8k`` or ``daquar`` in one part (``"train"`` or ``"heldout"``)."""
    readers = {"flickr8k": _flickr8k, "daquar": _daquar}
    if name not in readers:
        raise ValueError(f"unknown photo set {name!r}; choose one of {', '.join(readers)}")
    root = Path(folder) / name
    found = readers[name](root)
    return [photo for photo in found if split(photo.path.name) == part]


def tidy(caption: str) -> str:
    """Undo the dataset's spacing: ``"a dog , running ."`` becomes ``"A dog, running."``."""
    text = " ".join(caption.split())
    for mark in (".", ",", "!", "?", ";", ":", "'s"):
        text = text.replace(f" {mark}", mark)
    text = text.replace('" ', '"', 1) if text.count('"') == 2 else text.replace('"', "")
    text = text.strip().rstrip(".").strip()
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _lines(root: Path) -> Iterator[dict]:
    with (root / "annotations.jsonl").open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _flickr8k(root: Path) -> Iterator[Photo]:
    for item in _lines(root):
        rng = Random(item["image"])
        captions = [text for text in map(tidy, item["captions"]) if text]
        if not captions:
            continue
        turns = [Turn(rng.choice(SHORT_QUESTIONS), text, "photo") for text in captions[:4]]
        for _ in range(2):
            chosen = rng.sample(captions, min(3, len(captions)))
            turns.append(Turn(rng.choice(LONG_QUESTIONS), " ".join(chosen), "photo"))
        yield Photo(root / item["image"], tuple(turns), "flickr8k", tuple(captions))


def _daquar(root: Path) -> Iterator[Photo]:
    grouped: dict[str, list[Turn]] = {}
    for item in _lines(root):
        turn = Turn(_sentence(item["question"]), answer(item["question"], item["answers"]), "photo")
        grouped.setdefault(item["image"], []).append(turn)
    for image, turns in grouped.items():
        yield Photo(root / image, tuple(turns), "daquar")


def _sentence(question: str) -> str:
    text = " ".join(question.replace("_", " ").split()).rstrip("?").strip()
    return f"{text[:1].upper()}{text[1:]}?"


def answer(question: str, answers: list[str]) -> str:
    """A full sentence out of DAQUAR's bare answers (nouns, colours or a number)."""
    words = [text.strip().replace("_", " ") for text in answers]
    asked = question.lower()
    if asked.startswith("how many") and len(words) == 1 and words[0].isdigit():
        count = int(words[0])
        name = NUMBERS[count] if 0 < count < len(NUMBERS) else words[0]
        return f"There {'is' if count == 1 else 'are'} {name}."
    if "colo" in asked.split("?")[0][:14]:
        return f"It is {listing(words)}."
    if len(words) == 1:
        return f"It is {words[0]}." if words[0].endswith("s") else f"It is {article(words[0])}."
    return f"There are {listing(words)}."
