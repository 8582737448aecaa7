"""Training images decoded once: one memory-mapped array of pixels beside their dialogues.

Rendering a scene or decoding a photograph costs milliseconds, reading it back costs none, so that
the training loop never waits for Pillow. The cache lives in a work folder outside the project.

Files: ``pixels.u8`` ``[n, size, size, 3]`` uint8, ``glyphs.u8``, ``hues.u8``, ``ranks.u8`` and
``lines.u8`` ``[n, patches]`` uint8 (what each patch shows, see ``PATCH_CLASSES``),
``dialogues.jsonl`` (source and turns).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import string
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np

from vispec.training import photos, scene_words, scenes
from vispec.training.scene_words import Turn

PATCH = 16
"""Side of a patch, pixels."""
PATCH_CLASSES = ("", *string.digits, *string.ascii_letters, *scenes.FORMS)
"""What a patch can show: nothing, a character, a form."""
HUE_CLASSES = ("", *scenes.COLOURS)
LONGEST_LINE = 16
RANK_CLASSES = ("", *(str(place) for place in range(LONGEST_LINE)), *scenes.RADII)
"""A character's place in its line (the last one stands for all beyond), or a form's size."""
LINE_CLASSES = ("", "0", "1", "2", "3")
"""A character's line (the last one stands for all beyond); forms have none."""
_LABELS = ("glyphs", "hues", "ranks", "lines")


@dataclass(frozen=True)
class ImageCache:
    """``n`` images with their dialogues; ``source`` is ``"scene"`` or a photo set's name.

    Attributes:
        pixels: ``[n, size, size, 3]`` uint8.
        glyphs, hues, ranks, lines: ``[n, patches]`` uint8, indices into ``PATCH_CLASSES``,
            ``HUE_CLASSES``, ``RANK_CLASSES`` and ``LINE_CLASSES``.
        turns, sources: one entry an image.
    """

    pixels: np.ndarray
    glyphs: np.ndarray
    hues: np.ndarray
    ranks: np.ndarray
    lines: np.ndarray
    turns: list[tuple[Turn, ...]]
    sources: list[str]

    def __len__(self) -> int:
        return len(self.sources)

    @classmethod
    def build(
        cls,
        folder: Path,
        seeds: Sequence[int],
        pictures: Sequence[photos.Photo] = (),
        render: Callable[[int], scenes.Dialogue] = scenes.dialogue,
        workers: int = 0,
    ) -> ImageCache:
        """Render the scenes of ``seeds``, decode ``pictures``, and open the result.

        A folder already complete for the same input is opened as it is.

        Args:
            render: makes the dialogue of a seed.
            workers: processes that draw; 0 is none but this one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        first = seeds[0] if seeds else None
        key = f"{len(seeds)} scenes from {first}, {len(pictures)} photos, made by {_makers()}"
        done = folder / "complete.txt"
        if not (done.exists() and done.read_text() == key):
            _write(folder, seeds, pictures, render, workers)
            done.write_text(key)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> ImageCache:
        """Map a cache written by ``build``."""
        turns, sources = [], []
        with (folder / "dialogues.jsonl").open(encoding="utf-8") as file:
            for line in file:
                item = json.loads(line)
                turns.append(tuple(Turn(**turn) for turn in item["turns"]))
                sources.append(item["source"])
        count, side, patches = len(sources), scenes.SIZE, (scenes.SIZE // PATCH) ** 2

        def array(name: str, *shape: int) -> np.ndarray:
            return np.memmap(folder / f"{name}.u8", np.uint8, "r", shape=(count, *shape))

        return cls(
            array("pixels", side, side, 3),
            turns=turns,
            sources=sources,
            **{name: array(name, patches) for name in _LABELS},
        )


def _makers() -> str:
    """What tells the code and the fonts that make images from others."""
    digest = hashlib.sha256(repr([Path(font).name for font in scenes.fonts()]).encode())
    for module in (scenes, scene_words, photos, sys.modules[__name__]):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]


def _write(
    folder: Path,
    seeds: Sequence[int],
    pictures: Sequence[photos.Photo],
    render: Callable[[int], scenes.Dialogue],
    workers: int,
) -> None:
    with ExitStack() as stack:
        arrays = [
            stack.enter_context((folder / f"{name}.u8").open("wb")) for name in ("pixels", *_LABELS)
        ]
        dialogues = stack.enter_context((folder / "dialogues.jsonl").open("w", encoding="utf-8"))

        def add(parts: Sequence[np.ndarray], turns: tuple[Turn, ...], source: str) -> None:
            for file, part in zip(arrays, parts, strict=True):
                file.write(part.tobytes())
            item = {"source": source, "turns": [asdict(turn) for turn in turns]}
            dialogues.write(json.dumps(item) + "\n")

        run: Callable[..., Iterable[Any]] = map
        if workers:
            run = partial(stack.enter_context(Pool(workers)).imap, chunksize=16)
        for parts, turns in run(partial(_drawn, render), seeds):
            add(parts, turns, "scene")
        blank = np.zeros((scenes.SIZE // PATCH) ** 2, np.uint8)
        for photo, pixels in zip(pictures, run(_decoded, pictures), strict=True):
            add([pixels, *[blank] * len(_LABELS)], photo.turns, photo.source)


def _drawn(
    render: Callable[[int], scenes.Dialogue], seed: int
) -> tuple[list[np.ndarray], tuple[Turn, ...]]:
    """Pixels and patch labels of a scene, and its turns."""
    found = render(seed)
    return [np.asarray(found.image), *patch_labels(found)], found.turns


def _decoded(photo: photos.Photo) -> np.ndarray:
    return np.asarray(photo.open(scenes.SIZE))


def patch_labels(found: scenes.Dialogue) -> tuple[np.ndarray, ...]:
    """What every patch of a scene shows: (glyphs, hues, ranks, lines), each ``[patches]`` uint8.

    Patches go row by row. One shows the mark that covers its centre; a mark narrower than a patch
    still claims the patch it is centred in.
    """
    side = scenes.SIZE // PATCH
    glyphs, hues, ranks, lines = (np.zeros((side, side), np.uint8) for _ in _LABELS)
    centres = (np.arange(side) + 0.5) * PATCH
    for mark in found.marks:
        left, top, right, bottom = mark.box
        across = (centres >= left) & (centres < right)
        down = (centres >= top) & (centres < bottom)
        if not across.any():
            across[min(side - 1, max(0, int((left + right) / 2 // PATCH)))] = True
        if not down.any():
            down[min(side - 1, max(0, int((top + bottom) / 2 // PATCH)))] = True
        hue, _, form = mark.label.partition(" ")
        cells = np.ix_(down, across)
        glyphs[cells] = PATCH_CLASSES.index(form or mark.label)
        hues[cells] = HUE_CLASSES.index(hue if form else found.facts.ink)
        ranks[cells] = 1 + (LONGEST_LINE + mark.rank if form else min(mark.rank, LONGEST_LINE - 1))
        lines[cells] = 0 if mark.line is None else 1 + min(mark.line, len(LINE_CLASSES) - 2)
    return glyphs.ravel(), hues.ravel(), ranks.ravel(), lines.ravel()
