"""What the tower learns alone: to name what patches show, and the words of captions.

Letters: ``b`` drawn images, ``p`` photographs, ``v`` patches, ``w`` words, ``d`` hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel

from vispec.training.augment import augment
from vispec.training.image_cache import (
    HUE_CLASSES,
    LINE_CLASSES,
    PATCH_CLASSES,
    RANK_CLASSES,
    ImageCache,
)
from vispec.training.photos import telling_words
from vispec.training.pretrain import normalise

WORDS = 600
"""Caption words that the tower learns to recognise."""
GLIMPSE = 1 / 3
"""Share of a photograph's patches that the tower learns its words from."""


@dataclass(frozen=True)
class PatchBatch:
    """What a tower is taught before it meets a decoder: drawn images and photographs.

    Attributes:
        images: ``[b, size, size, 3]`` uint8, drawn.
        glyphs, hues, ranks, lines: ``[b, v]`` int64 classes of every patch.
        photos: ``[p, size, size, 3]`` uint8.
        words: ``[p, w]`` float, which of ``w`` caption words fit a photograph.
        seen: ``[p, m]`` int64, the patches of each photograph that the tower is shown; None is all.
    """

    images: Tensor
    glyphs: Tensor
    hues: Tensor
    ranks: Tensor
    lines: Tensor
    photos: Tensor
    words: Tensor
    seen: Tensor | None = None

    def to(self, device: torch.device | str) -> PatchBatch:
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


class TowerPretraining(nn.Module):
    """A vision tower with throw-away heads that name every patch and the words of a caption.

    Patches teach reading and shapes densely (``v`` labels an image instead of a few words), which
    makes the visual features useful long before a decoder could have taught them. A patch also
    names its character's line and place in it: what a decoder that spells must find next.
    A photograph's words are read off some of its patches, which costs as much less (FLIP, arXiv
    2212.00794).
    """

    def __init__(self, tower: CLIPVisionModel, width: int, words: int) -> None:
        super().__init__()
        self.tower = tower
        self.norm = nn.LayerNorm(width)
        self.glyph = nn.Linear(width, len(PATCH_CLASSES))
        self.hue = nn.Linear(width, len(HUE_CLASSES))
        self.rank = nn.Linear(width, len(RANK_CLASSES))
        self.line = nn.Linear(width, len(LINE_CLASSES))
        self.words = nn.Linear(width, words)
        # Nearly every word is absent from a caption; starting there saves the first minutes.
        nn.init.constant_(self.words.bias, -3.5)

    def patches(self, images: Tensor, seen: Tensor | None = None) -> Tensor:
        """States ``[b, v, d]`` of patches, of those ``seen`` alone if given."""
        x = self.tower.embeddings(normalise(images))
        if seen is not None:
            kept = torch.cat([torch.zeros_like(seen[:, :1]), seen + 1], 1)
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        x = self.tower.encoder(inputs_embeds=self.tower.pre_layrnorm(x)).last_hidden_state
        return self.norm(x[:, 1:])

    def forward(self, batch: PatchBatch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Logits of glyphs, hues, ranks and lines ``[b, v, .]`` and of words ``[p, w]``."""
        states = self.patches(batch.images)
        photos = len(batch.photos)
        seen = self.patches(batch.photos, batch.seen).mean(1) if photos else states[:0].mean(1)
        words = self.words(seen)
        return self.glyph(states), self.hue(states), self.rank(states), self.line(states), words


def patch_loss(model: nn.Module, batch: PatchBatch) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of patches (empty ones weigh little) plus that of the photographs' words."""
    *found, words = model(batch)
    wanted = batch.glyphs, batch.hues, batch.ranks, batch.lines
    loss = words.new_zeros((), dtype=torch.float32)
    numbers: dict[str, float] = {}
    shown = batch.glyphs > 0
    weight = torch.where(shown, 1.0, 0.1).flatten()
    for name, share, logits, classes in zip(
        ("glyph", "hue", "rank", "line"), (1.0, 0.5, 0.5, 0.25), found, wanted, strict=True
    ):
        each = functional.cross_entropy(
            logits.float().flatten(0, 1), classes.flatten(), reduction="none"
        )
        loss = loss + share * (each * weight).sum() / weight.sum()
        right = (logits.argmax(-1) == classes)[shown].float().mean().item()
        numbers[f"{name}_accuracy"] = right
    if len(batch.photos):
        named = functional.binary_cross_entropy_with_logits(
            words.float(), batch.words, reduction="none"
        )
        of_words = named.sum(1).mean()
        loss = loss + 0.03 * of_words
        numbers["words_loss"] = of_words.item()
    return loss, numbers


class TowerBatches:
    """Batches of pages and scenes, and of glimpses of photographs; a function of the step alone.

    Args:
        train: scenes and photographs.
        pages: crowded pages.
        batch: drawn images a step, half of them pages; photographs come on top, as many as have
            the same number of patches in their glimpses.
        seed: of what is drawn.
    """

    def __init__(self, train: ImageCache, pages: ImageCache, batch: int, seed: int) -> None:
        self.train, self.pages, self.batch, self.seed = train, pages, batch, seed
        self.words = caption_words(train)
        sources = np.array(train.sources)
        self._scenes, self._photos = (
            np.flatnonzero(sources == kind) for kind in ("scene", "flickr8k")
        )

    def __call__(self, step: int) -> PatchBatch:
        rng = np.random.default_rng((self.seed, 3, step))
        # Pages teach letters fast; where a line begins and ends is learnt from scenes.
        pages = rng.choice(len(self.pages), self.batch // 2, replace=False)
        scenes = rng.choice(self._scenes, self.batch - len(pages), replace=False)
        photos = rng.permutation(self._photos)[: int(self.batch / GLIMPSE)]
        drawn = [(self.pages, pages), (self.train, scenes)]
        batch = patch_batch(drawn, self.train, photos, self.words)
        if not len(photos):
            return batch
        v = batch.glyphs.shape[1]
        order = rng.permuted(np.tile(np.arange(v), (len(photos), 1)), axis=1)
        seen = torch.from_numpy(np.sort(order[:, : int(v * GLIMPSE)], 1))
        return replace(batch, photos=augment(batch.photos, rng), seen=seen)


def patch_batch(
    drawn: Sequence[tuple[ImageCache, np.ndarray]],
    pictures: ImageCache,
    photo_rows: np.ndarray,
    words: Sequence[str],
) -> PatchBatch:
    """Some drawn images with their patch classes, some photographs with their caption words."""
    place = {word: i for i, word in enumerate(words)}
    told = torch.zeros(len(photo_rows), WORDS)
    for i, row in enumerate(photo_rows):
        for word in _words(pictures, row) & place.keys():
            told[i, place[word]] = 1.0

    def of_patches(name: str) -> Tensor:
        found = [getattr(cache, name)[rows] for cache, rows in drawn]
        return torch.from_numpy(np.concatenate(found))

    return PatchBatch(
        of_patches("pixels"),
        of_patches("glyphs").long(),
        of_patches("hues").long(),
        of_patches("ranks").long(),
        of_patches("lines").long(),
        torch.from_numpy(pictures.pixels[photo_rows]),
        told,
    )


def caption_words(cache: ImageCache) -> list[str]:
    """The commonest telling words of Flickr8k's captions."""
    counts: Counter[str] = Counter()
    for row, source in enumerate(cache.sources):
        if source == "flickr8k":
            counts.update(_words(cache, row))
    return sorted(counts, key=lambda word: (-counts[word], word))[:WORDS]


def _words(cache: ImageCache, row: int) -> set[str]:
    return {word for turn in cache.turns[row] for word in telling_words(turn.answer)}


def heldout_patches(
    model: nn.Module, cache: ImageCache, words: Sequence[str], seed: int, count: int = 64
) -> dict[str, float]:
    """Mean loss and accuracies on ``count`` held-out scenes and as many whole photographs."""
    rng = np.random.default_rng(seed)
    device = next(model.parameters()).device
    sources = np.array(cache.sources)
    found: dict[str, list[float]] = {}
    kinds = [np.flatnonzero(sources == kind) for kind in ("scene", "flickr8k")]
    chosen = [rng.permutation(rows)[:count] for rows in kinds]
    for start in range(0, len(chosen[0]), 16):
        drawn, photos = (rows[start : start + 16] for rows in chosen)
        batch = patch_batch([(cache, drawn)], cache, photos, words).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss, numbers = patch_loss(model, batch)
        for name, value in ({"": loss.item()} | numbers).items():
            found.setdefault(f"heldout_{name}".rstrip("_"), []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}
