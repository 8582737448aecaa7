"""Dialogues about images as token batches, in exactly the target's chat format.

Every batch is a pure function of its step number, so that a resumed run sees what an
uninterrupted one would have seen. Letters: ``b`` conversations, ``t`` positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vispec.training.image_cache import PATCH_CLASSES, ImageCache
from vispec.training.scene_words import Turn

IGNORED = -100
"""Label of positions that carry no loss."""


@dataclass(frozen=True)
class Batch:
    """Right-padded conversations; causal attention needs no mask for padding on the right.

    Attributes:
        ids: ``[b, t]`` int64.
        labels: ``[b, t]`` int64, already shifted: ``labels[:, i]`` follows ``ids[:, i]``.
        images: ``[b, size, size, 3]`` uint8, or None for text alone.
    """

    ids: Tensor
    labels: Tensor
    images: Tensor | None


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
        texts = [f"\n{t.question} ASSISTANT:" for t in flat]
        texts += [f"USER: {t.question} ASSISTANT:" for t in flat]
        texts += [f" {t.answer}" for t in flat]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        n = len(flat)
        encoded = iter(
            [
                EncodedTurn(ids[i], ids[n + i], [*ids[2 * n + i], self.eos], flat[i].task)
                for i in range(n)
            ]
        )
        return [[next(encoded) for _ in turns] for turns in dialogues]

    def conversation(
        self, turns: Sequence[EncodedTurn], with_image: bool, longest: int
    ) -> tuple[list[int], list[int]]:
        """(ids, labels) of one conversation; turns are added while the text stays in bounds.

        Only answers and their ends carry loss. At least one turn is kept.
        """
        ids = list(self.opening) if with_image else [self.bos]
        start = len(ids)
        answered = [False] * len(ids)
        for i, turn in enumerate(turns):
            question = turn.first if with_image and i == 0 else turn.later
            if i and len(ids) - start + len(question) + len(turn.answer) > longest:
                continue
            ids += [*question, *turn.answer]
            answered += [False] * len(question) + [True] * len(turn.answer)
        labels = [token if yes else IGNORED for token, yes in zip(ids, answered, strict=True)]
        return ids, [*labels[1:], IGNORED]

    def collate(
        self, rows: Sequence[tuple[list[int], list[int]]], images: np.ndarray | None = None
    ) -> Batch:
        """Pad conversations of (ids, labels) on the right to a multiple of eight."""
        width = -(-max(len(ids) for ids, _ in rows) // 8) * 8
        ids = torch.full((len(rows), width), self.pad)
        labels = torch.full((len(rows), width), IGNORED)
        for i, (row, target) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, : len(row)] = torch.tensor(target)
        return Batch(ids, labels, None if images is None else torch.from_numpy(images))


class ImageBatches:
    """Conversations about cached images; ``batches(step)`` is a ``Batch``.

    With ``name_glyphs`` the positions of visual tokens are labelled too: a patch that shows a
    character predicts that character's token. It ties what the tower sees to the words of the
    decoder with dozens of labels an image, where reading answers alone are slow to do so.

    Images are visited in shuffled epochs. Conversations of ``window`` steps are sorted by length
    before they are cut into batches, so that little padding is computed.
    """

    def __init__(
        self,
        encoder: Encoder,
        cache: ImageCache,
        rows: Sequence[int],
        batch: int,
        longest: int,
        seed: int,
        window: int = 8,
        name_glyphs: bool = True,
    ) -> None:
        self.name_glyphs = name_glyphs
        self.characters = torch.tensor(
            [encoder.encode(c)[0] if len(c) == 1 else IGNORED for c in PATCH_CLASSES]
        )
        self.encoder, self.cache, self.rows = encoder, cache, list(rows)
        self.batch, self.longest, self.seed, self.window = batch, longest, seed, window
        self.encoded = dict(
            zip(self.rows, encoder.turns([cache.turns[r] for r in self.rows]), strict=True)
        )
        self._plan = lru_cache(maxsize=2)(self._plan_window)
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, step: int) -> Batch:
        rows = self._plan(step // self.window)[step % self.window]
        images = np.stack([self.cache.pixels[row] for row, _ in rows])
        batch = self.encoder.collate([conversation for _, conversation in rows], images)
        if self.name_glyphs:
            glyphs = np.stack([self.cache.glyphs[row] for row, _ in rows])
            visual = slice(len(self.encoder.opening) - glyphs.shape[1], len(self.encoder.opening))
            batch.labels[:, visual] = self.characters[torch.from_numpy(glyphs).long()]
        return batch

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows)

    def _plan_window(self, index: int) -> list[list[tuple[int, tuple[list[int], list[int]]]]]:
        rng = np.random.default_rng((self.seed, 7, index))
        size = self.window * self.batch
        drawn = []
        for position in range(index * size, (index + 1) * size):
            epoch, place = divmod(position, len(self.rows))
            row = int(self._epoch(epoch)[place])
            turns = self.encoded[row]
            order = [turns[i] for i in rng.permutation(len(turns))]
            drawn.append((row, self.encoder.conversation(order, True, self.longest)))
        drawn.sort(key=lambda item: len(item[1][0]))
        cuts = [drawn[i : i + self.batch] for i in range(0, size, self.batch)]
        return [cuts[i] for i in rng.permutation(self.window)]


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
                ids = self.passages[start : start + self.length].tolist()
            else:
                turns = self.encoded[int(rng.integers(len(self.encoded)))]
                order = [turns[i] for i in rng.permutation(len(turns))]
                ids, _ = self.encoder.conversation(order, False, self.length)
                ids = ids[: self.length]
            rows.append((ids, [*ids[1:], IGNORED]))
        return self.encoder.collate(rows)
