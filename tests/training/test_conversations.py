"""Batches of questions about images."""

from __future__ import annotations

import numpy as np

from vispec.training import scenes
from vispec.training.conversations import END, SPACE, following
from vispec.training.image_cache import PATCH_CLASSES, RANK_CLASSES, patch_labels


def test_behind_every_character_stands_the_next_one_of_the_text() -> None:
    names = (*PATCH_CLASSES, " ", "end")
    checked = 0
    for seed in range(60):
        found = scenes.dialogue(seed, "read")
        glyphs, _, ranks, lines = patch_labels(found)
        text = found.facts.lines
        if any(
            len(line.replace(" ", "")) != _shown(ranks, lines, i) for i, line in enumerate(text)
        ):
            continue  # two narrow characters share a patch
        for glyph, rank, line, behind in zip(
            glyphs, ranks, lines, following(glyphs, ranks, lines), strict=True
        ):
            if not glyph:
                assert behind == 0
                continue
            rest = (text[line - 1][int(RANK_CLASSES[rank]) + 1 :], *text[line:])
            said = " ".join(rest)
            assert names[behind] == (said[0] if said else "end")
            checked += 1
    assert checked > 1000


def _shown(ranks: np.ndarray, lines: np.ndarray, line: int) -> int:
    return len(set(ranks[lines == line + 1].tolist()))


def test_forms_have_nothing_to_be_read_behind_them() -> None:
    glyphs, _, ranks, lines = patch_labels(scenes.dialogue(5, "vqa"))
    assert not lines.any()
    assert not following(glyphs, ranks, lines).any()
    assert SPACE != END
