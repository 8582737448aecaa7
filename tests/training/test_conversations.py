"""Batches of questions about images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vispec.training import photos, scenes
from vispec.training.conversations import END, IGNORED, SPACE, Encoder, ImageBatches, following
from vispec.training.image_cache import PATCH_CLASSES, RANK_CLASSES, ImageCache, patch_labels
from vispec.training.scene_words import PLACES
from vispec.training.tokenizer import train_tokenizer


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


def test_patches_of_a_photograph_predict_words_of_its_answers(tmp_path: Path) -> None:
    (tmp_path / "flickr8k" / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "flickr8k" / "images" / "a.jpg")
    line = {"image": "images/a.jpg", "captions": ["A brown dog is running ."]}
    (tmp_path / "flickr8k" / "annotations.jsonl").write_text(json.dumps(line))
    pictures = [p for part in ("train", "heldout") for p in photos.load(tmp_path, "flickr8k", part)]
    cache = ImageCache.build(tmp_path / "cache", [3], pictures)
    texts = [f" {t.question} {t.answer} a brown dog" for turns in cache.turns for t in turns] * 3
    encoder = Encoder(train_tokenizer(texts, 500), 144)
    batches = ImageBatches(encoder, cache, [1], 1, 160, seed=0)
    words = {"".join(encoder.tokenizer.convert_ids_to_tokens([t])) for t in _labels(batches)}
    assert {"Ġbrown", "Ġdog"} <= words <= {"Ġbrown", "Ġdog", "Ġrunning"}


def _labels(batches: ImageBatches) -> list[int]:
    labels = [batches(step).labels[0, 6:150] for step in range(3)]
    return [int(t) for row in labels for t in row if t != IGNORED]


def test_patches_of_a_form_say_its_name_its_size_its_colour_or_its_place(tmp_path: Path) -> None:
    seed = next(s for s in range(99) if len(scenes.dialogue(s).facts.shapes) == 3)
    cache = ImageCache.build(tmp_path, [seed])
    places = {word for row in PLACES for place in row for word in place.split()}
    words = " ".join(
        f" {word}" for word in (*scenes.COLOURS, *scenes.FORMS, *scenes.RADII, *places)
    )
    encoder = Encoder(train_tokenizer([words] * 3, 400), 144)
    said = _labels(ImageBatches(encoder, cache, [0], 1, 160, seed=0))
    texts = {encoder.tokenizer.decode([token]).strip() for token in said}
    shapes = scenes.dialogue(seed).facts.shapes
    for shape in shapes:
        assert {shape.form, shape.colour, shape.size, *shape.place.split()} <= texts
    elsewhere = places - {word for s in shapes for word in s.place.split()}
    assert elsewhere
    assert not elsewhere & texts
