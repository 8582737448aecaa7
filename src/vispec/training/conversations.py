"""Dialogues about images as token batches, in exactly the target's chat format.

Every batch is a pure function of its step number, so that a resumed run sees what an
uninterrupted one would have seen. Letters: ``b`` conversations, ``t`` positions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vispec.training.augment import augment, erase
from vispec.training.image_cache import (
    HUE_CLASSES,
    LINE_CLASSES,
    PATCH,
    PATCH_CLASSES,
    RANK_CLASSES,
    ImageCache,
)
from vispec.training.photos import telling_words
from vispec.training.scene_words import PLACES, Turn
from vispec.training.scenes import RADII, SIZE

IGNORED = -100
"""Label of positions that carry no loss."""


@dataclass(frozen=True)
class Row:
    """One image (or none) with what is said about it.

    Attributes:
        ids: token ids.
        labels: one a token, already shifted: ``labels[i]`` follows ``ids[i]``.
        segments: 0 for what everything after it sees; equal positive numbers see each other.
    """

    ids: list[int]
    labels: list[int]
    segments: list[int]


@dataclass(frozen=True)
class Batch:
    """Right-padded rows; causal attention needs no mask for padding on the right.

    Attributes:
        ids, labels, segments: ``[b, t]`` int64, see ``Row``.
        images: ``[b, size, size, 3]`` uint8, or None for text alone.
    """

    ids: Tensor
    labels: Tensor
    segments: Tensor
    images: Tensor | None

    def to(self, device: torch.device | str) -> Batch:
        images = None if self.images is None else self.images.to(device)
        return Batch(self.ids.to(device), self.labels.to(device), self.segments.to(device), images)

    def positions(self) -> Tensor:
        """``[b, t]``: every segment begins where the shared part ends."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        begins = self.segments.diff(dim=1, prepend=self.segments[:, :1]) != 0
        first = torch.where(begins, place, 0).cummax(1).values
        shared = (self.segments > 0).int().argmax(1, keepdim=True)
        return torch.where(self.segments > 0, shared + place - first, place)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """``[b, 1, t, t]``, 0 where a position may look and the least number elsewhere."""
        one, other = self.segments[:, :, None], self.segments[:, None, :]
        seen = ((other == 0) | (one == other)).tril()
        hidden = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=seen.device)
        return hidden.masked_fill_(seen, 0)[:, None]


@dataclass(frozen=True)
class EncodedTurn:
    """Token ids of one turn: the question as the first of a conversation or later, the answer."""

    first: list[int]
    later: list[int]
    answer: list[int]
    task: str


class Encoder:
    """Turns dialogues into token ids.

    Args:
        tokenizer: the target's.
        visual_tokens: positions that one image takes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, visual_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id
        image = tokenizer.convert_tokens_to_ids("<image>")
        self.opening = [self.bos, *self.encode("USER: "), *([image] * visual_tokens)]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def turns(self, dialogues: Sequence[Sequence[Turn]]) -> list[list[EncodedTurn]]:
        """Encode all turns of many dialogues at once."""
        flat = [turn for turns in dialogues for turn in turns]
        texts = [f"\n{t.question} ASSISTANT:\n" for t in flat]
        texts += [f"USER: {t.question} ASSISTANT:\n" for t in flat]
        texts += [t.answer for t in flat]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        n = len(flat)
        encoded = iter(
            [
                EncodedTurn(ids[i], ids[n + i], [*ids[2 * n + i], self.eos], flat[i].task)
                for i in range(n)
            ]
        )
        return [[next(encoded) for _ in turns] for turns in dialogues]

    def conversation(self, turns: Sequence[EncodedTurn], with_image: bool, longest: int) -> Row:
        """One conversation of several turns, each added while the text stays in bounds.

        Only answers and their ends carry loss. At least one turn is kept.
        """
        ids = list(self.opening) if with_image else [self.bos]
        start = len(ids)
        labels = [IGNORED] * start
        for i, turn in enumerate(turns):
            question = turn.first if with_image and i == 0 else turn.later
            if i and len(ids) - start + len(question) + len(turn.answer) > longest:
                continue
            ids += [*question, *turn.answer]
            labels += _answered(question, turn.answer)
        return Row(ids, [*labels[1:], IGNORED], [0] * start + [1] * (len(ids) - start))

    def questions(self, turns: Sequence[EncodedTurn], longest: int) -> Row:
        """One image with several questions that do not see each other, each asked as the first.

        What a conversation could copy from its earlier answers must be looked up in the image here,
        at the price of one image for many answers.
        """
        ids, segments = list(self.opening), [0] * len(self.opening)
        labels = [IGNORED] * len(ids)
        start = len(ids)
        for turn in turns:
            length = len(turn.first) + len(turn.answer)
            if len(ids) > start and len(ids) - start + length > longest:
                continue
            labels += _answered(turn.first, turn.answer)
            ids += [*turn.first, *turn.answer]
            segments += [segments[-1] + 1] * length
        return Row(ids, [*labels[1:], IGNORED], segments)

    def collate(
        self, rows: Sequence[Row], images: np.ndarray | None = None, least: int = 0
    ) -> Batch:
        """Pad rows on the right to at least ``least`` positions.

        One width for all batches is one shape to compile for; wider ones are multiples of 64.
        """
        longest = max(len(row.ids) for row in rows)
        width = least if longest <= least else -(-longest // 64) * 64

        def padded(lists: Sequence[list[int]], value: int) -> Tensor:
            return torch.tensor([[*found, *[value] * (width - len(found))] for found in lists])

        return Batch(
            padded([row.ids for row in rows], self.pad),
            padded([row.labels for row in rows], IGNORED),
            padded([row.segments for row in rows], 0),
            None if images is None else torch.from_numpy(images),
        )


def _answered(question: list[int], answer: list[int]) -> list[int]:
    return [IGNORED] * len(question) + answer


class ImageBatches:
    """Questions about cached images; ``batches(step)`` is a ``Batch``.

    The positions of visual tokens are labelled too. A patch that shows a character says its token,
    or the one that is read behind it, or, half as often as either, its colour; one that shows a
    form says what it is, its colour, its size or a word of its place. It ties what the tower sees
    to the words of the decoder with dozens of labels an image, and makes spelling a matter of
    finding the character that was said last, where answers alone are slow to teach both. Of a
    photograph, every third patch says some word of its answers.

    Images are visited in shuffled epochs. Photographs are cropped, mirrored and tinted at random,
    and lose some patches; they are only tinted where something is said of sides, places or numbers.
    Scenes are shown as they are.

    Args:
        rows: rows of ``cache``; one that stands here twice is shown twice an epoch.
        longest: text positions beside an image, at most (but for one long turn).
        talk_share: share of images with one conversation instead of separate questions.
    """

    def __init__(
        self,
        encoder: Encoder,
        cache: ImageCache,
        rows: Sequence[int],
        batch: int,
        longest: int,
        seed: int,
        talk_share: float = 0.15,
    ) -> None:
        self.talk_share = talk_share
        self.encoder, self.cache, self.rows = encoder, cache, list(rows)
        self.batch, self.longest, self.seed = batch, longest, seed
        self.width = -(-(len(encoder.opening) + longest) // 32) * 32
        self.names, self.colours, self.sizes = (
            np.array([_patch_token(encoder, name) for name in names])
            for names in (
                PATCH_CLASSES,
                HUE_CLASSES,
                [n if n in RADII else "" for n in RANK_CLASSES],
            )
        )
        self.places = np.array([[_patch_token(encoder, w) for w in words] for words in _places()])
        self.read = np.array([*self.names, encoder.encode(" ")[0], encoder.encode('".')[0]])
        photos = [row for row in sorted(set(self.rows)) if cache.sources[row] != "scene"]
        self.words = {row: self._answer_words(row) for row in photos}
        self.placed = {row: self._is_placed(row) for row in photos}
        self._epoch = lru_cache(maxsize=2)(self._shuffle)
        self._encoded = lru_cache(maxsize=65536)(self._encode)

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, 7, step))
        rows = []
        for position in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(position, len(self.rows))
            rows.append(int(self._epoch(epoch)[place]))
        shown = []
        for row in rows:
            turns = self._encoded(row)
            order = [turns[i] for i in rng.permutation(len(turns))]
            talk = rng.random() < self.talk_share
            shown.append(
                self.encoder.conversation(order, True, self.longest)
                if talk
                else self.encoder.questions(order, self.longest)
            )
        batch = self.encoder.collate(shown, self.cache.pixels[rows], self.width)
        labels = self._patch_labels(rows, rng)
        visual = slice(len(self.encoder.opening) - labels.shape[1], len(self.encoder.opening))
        batch.labels[:, visual] = labels
        photo = [i for i, row in enumerate(rows) if row in self.placed]
        if photo:
            assert batch.images is not None
            placed = np.array([self.placed[rows[i]] for i in photo])
            seen = augment(batch.images[photo], rng, placed)
            batch.images[photo] = erase(seen, rng, PATCH, np.where(placed, 0.0, 0.5))
        return batch

    def _patch_labels(self, rows: Sequence[int], rng: np.random.Generator) -> Tensor:
        """``[b, v]`` what the patches of some images should say."""
        cache = self.cache
        glyphs, hues, ranks = (x[rows] for x in (cache.glyphs, cache.hues, cache.ranks))
        patches = zip(glyphs, ranks, cache.lines[rows], strict=True)
        behind = np.stack([following(*image) for image in patches])
        formed = [np.where(glyphs != 0, x, IGNORED) for x in (self.sizes[ranks], *self.places)]
        # A character's name as often as what is read behind it: the one is how the other is found.
        spelt = self.read[behind], self.names[glyphs], self.read[behind]
        beside = [np.where(behind != 0, *pair) for pair in zip(spelt, formed, strict=True)]
        told = np.stack([self.names[glyphs], self.colours[hues], *beside])
        drawn = rng.integers(len(told), size=(1, *glyphs.shape))
        labels = np.take_along_axis(told, drawn, 0)[0]
        for place, row in enumerate(rows):
            if words := self.words.get(row):
                chosen = rng.random(labels.shape[1]) < 1 / 3
                labels[place] = np.where(chosen, rng.choice(words, labels.shape[1]), IGNORED)
        return torch.from_numpy(labels)

    def _is_placed(self, row: int) -> bool:
        turns = self.cache.turns[row]
        sides = any(re.search(r"\b(left|right)\b", f"{t.question} {t.answer}") for t in turns)
        return sides or self.cache.sources[row] == "daquar"

    def _answer_words(self, row: int) -> list[int]:
        """Tokens that are telling words of an image's answers, as often as they are said."""
        told = telling_words(" ".join(turn.answer for turn in self.cache.turns[row]))
        ids = (_patch_token(self.encoder, word) for word in told)
        return [token for token in ids if token != IGNORED]

    def _encode(self, row: int) -> list[EncodedTurn]:
        return self.encoder.turns([self.cache.turns[row]])[0]

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows)


def _places() -> tuple[list[str], list[str]]:
    """The first and the last word for the place of every patch, row by row."""
    side = SIZE // PATCH
    cells = [PLACES[3 * y // side][3 * x // side].split() for y in range(side) for x in range(side)]
    return [cell[0] for cell in cells], [cell[-1] for cell in cells]


SPACE, END = len(PATCH_CLASSES), len(PATCH_CLASSES) + 1


def following(glyphs: np.ndarray, ranks: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """What is read behind the character of every patch of one image, ``[v]`` int64.

    A class of ``PATCH_CLASSES``, ``SPACE`` between words and lines, ``END`` behind the last
    character; 0 for patches that show none.
    """
    table = np.zeros((len(LINE_CLASSES), len(RANK_CLASSES) + 2), np.int64)
    table[lines, ranks] = glyphs
    behind = table[lines, ranks + 1]
    more = (table[lines, ranks + 2] > 0) | (lines < lines.max())
    behind = np.where(behind > 0, behind, np.where(more, SPACE, END))
    return np.where(lines > 0, behind, 0)


@lru_cache(maxsize=8192)
def _patch_token(encoder: Encoder, name: str) -> int:
    """The token that a patch showing ``name`` should say, if it is a single one."""
    ids = encoder.encode(name if len(name) < 2 else f" {name}")
    return ids[0] if len(ids) == 1 else IGNORED


class TextBatches:
    """The same dialogues without their images, and passages of plain text; loss on every token.

    Args:
        passages: token ids of running text, cut anywhere.
        plain_share: share of rows that are such passages.
    """

    def __init__(
        self,
        encoder: Encoder,
        dialogues: Sequence[Sequence[Turn]],
        passages: Sequence[int],
        batch: int,
        length: int,
        seed: int,
        plain_share: float = 0.15,
    ) -> None:
        self.encoder, self.passages = encoder, np.asarray(passages)
        self.encoded = encoder.turns(dialogues)
        self.batch, self.length, self.seed = batch, length, seed
        self.plain_share = plain_share if len(self.passages) > length else 0.0

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, 11, step))
        rows = []
        for _ in range(self.batch):
            if rng.random() < self.plain_share:
                start = int(rng.integers(len(self.passages) - self.length))
                ids = [self.encoder.bos, *self.passages[start : start + self.length - 1].tolist()]
            else:
                turns = self.encoded[int(rng.integers(len(self.encoded)))]
                order = [turns[i] for i in rng.permutation(len(turns))]
                ids = self.encoder.conversation(order, False, self.length).ids[: self.length]
            rows.append(Row(ids, [*ids[1:], IGNORED], [0] * len(ids)))
        return self.encoder.collate(rows, least=self.length)
