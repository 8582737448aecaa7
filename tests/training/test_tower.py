"""The tower's own lessons."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vispec.training import photos, scenes
from vispec.training.image_cache import ImageCache
from vispec.training.pretrain import TargetShape, build_target, normalise
from vispec.training.tower import (
    GLIMPSE,
    WORDS,
    TowerBatches,
    TowerPretraining,
    heldout_patches,
    patch_loss,
)

TOY = TargetShape(vocabulary=300, width=32, heads=2, mlp=48, layers=2, tower_layers=2, tower_mlp=48)
PATCHES = TOY.visual_tokens


@pytest.fixture(scope="module")
def tower() -> TowerPretraining:
    torch.manual_seed(0)
    model = build_target(TOY, {"bos": 0, "eos": 1, "pad": 2, "image": 3}, 1)
    return TowerPretraining(model.model.vision_tower, TOY.width, WORDS).eval()


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageCache, ImageCache]:
    folder = tmp_path_factory.mktemp("tower")
    (folder / "flickr8k" / "images").mkdir(parents=True)
    lines = []
    for i in range(9):
        Image.new("RGB", (40, 30), (20 * i, 9, 9)).save(folder / "flickr8k" / "images" / f"{i}.jpg")
        captions = ["A dog runs on the grass .", "A man walks ."]
        lines.append({"image": f"images/{i}.jpg", "captions": captions})
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "flickr8k" / "annotations.jsonl").write_text(text)
    pictures = [p for part in ("train", "heldout") for p in photos.load(folder, "flickr8k", part)]
    train = ImageCache.build(folder / "train", range(8), pictures)
    return train, ImageCache.build(folder / "pages", range(6), render=scenes.page)


def test_patches_are_the_towers_own_last_states(tower: TowerPretraining) -> None:
    images = torch.randint(0, 255, (2, 192, 192, 3), dtype=torch.uint8)
    own = tower.tower(normalise(images), output_hidden_states=True).hidden_states[-1][:, 1:]
    torch.testing.assert_close(tower.patches(images), tower.norm(own))
    everything = torch.arange(PATCHES).expand(2, -1)
    torch.testing.assert_close(tower.patches(images, everything), tower.norm(own))


def test_what_is_not_seen_does_not_matter(tower: TowerPretraining) -> None:
    images = torch.randint(0, 255, (1, 192, 192, 3), dtype=torch.uint8)
    other = images.clone()
    other[:, :16, :16] = 0  # the first patch
    seen = torch.arange(1, PATCHES)[None]
    assert torch.equal(tower.patches(images, seen), tower.patches(other, seen))
    assert not torch.equal(tower.patches(images), tower.patches(other))


def test_a_batch_depends_on_its_step_alone(caches: tuple[ImageCache, ImageCache]) -> None:
    one, two = (TowerBatches(*caches, batch=4, seed=3) for _ in range(2))
    one(0)
    for name in ("images", "glyphs", "photos", "words", "seen"):
        assert torch.equal(getattr(one(5), name), getattr(two(5), name))
    assert not torch.equal(one(5).images, one(6).images)


def test_a_batch_has_pages_scenes_and_glimpses(caches: tuple[ImageCache, ImageCache]) -> None:
    train, pages = caches
    batch = TowerBatches(train, pages, batch=4, seed=3)(0)
    shown = [image.numpy() for image in batch.images]
    assert all(any(np.array_equal(i, p) for p in pages.pixels) for i in shown[:2])
    assert all(any(np.array_equal(i, p) for p in train.pixels[:8]) for i in shown[2:])
    assert batch.seen is not None
    assert batch.seen.shape == (9, int(PATCHES * GLIMPSE))
    assert all(len(set(row.tolist())) == len(row) for row in batch.seen)


def test_words_are_those_of_the_captions(caches: tuple[ImageCache, ImageCache]) -> None:
    batches = TowerBatches(*caches, batch=4, seed=3)
    assert set(batches.words) == {"dog", "runs", "grass", "man", "walks"}
    assert batches(0).words.sum(1).tolist() == [5.0] * 9


def test_the_loss_knows_right_from_wrong(
    tower: TowerPretraining, caches: tuple[ImageCache, ImageCache]
) -> None:
    """Heads that read the labels from the batch lose nothing."""
    batch = TowerBatches(*caches, batch=4, seed=3)(0)

    def told(wrong: int) -> tuple[torch.Tensor, ...]:
        labels = (batch.glyphs, batch.hues, batch.ranks, batch.lines)
        sizes = [head.out_features for head in (tower.glyph, tower.hue, tower.rank, tower.line)]
        logits = [
            50.0 * torch.nn.functional.one_hot((one + wrong) % size, size).float()
            for one, size in zip(labels, sizes, strict=True)
        ]
        sign = -1 if wrong else 1
        return *logits, sign * 50.0 * (2 * batch.words - 1)

    loss, numbers = patch_loss(lambda _: told(0), batch)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert numbers["glyph_accuracy"] == numbers["line_accuracy"] == 1
    loss, numbers = patch_loss(lambda _: told(1), batch)  # type: ignore[arg-type]
    assert loss.item() > 50
    assert numbers["glyph_accuracy"] == 0


def test_heldout_numbers_are_of_every_head(
    tower: TowerPretraining, caches: tuple[ImageCache, ImageCache]
) -> None:
    with torch.no_grad():
        numbers = heldout_patches(tower, caches[0], ["dog", "man"], seed=0)
    names = ("glyph_accuracy", "hue_accuracy", "rank_accuracy", "line_accuracy", "words_loss")
    assert set(numbers) == {"heldout", *(f"heldout_{name}" for name in names)}
