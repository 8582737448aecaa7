"""What the target's decoder saw and made of its own answers: what drafts learn from.

`Online` works it out whenever it is asked for; `Store` keeps it on disk for many epochs. Both are
sequences of the same samples.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vispec.decoding.tree import Tree
from vispec.drafts.compression import rounded
from vispec.errors import ImageError, VispecError
from vispec.targets.base import Target
from vispec.training.distill import Answer, Question
from vispec.training.progress import Progress
from vispec.writing import saving

Precision = Literal["float32", "bfloat16", "int8"]
SHARD = 128
MISSED = 8
"""Pictures that may be damaged since they were asked about, or a tenth of all."""


@dataclass(frozen=True)
class Sample:
    """One conversation, of which the target wrote the end.

    Attributes:
        features: `[t, f]` what a draft reads: last hidden states, or of several layers.
        hidden: `[t, d]` last hidden states, which the LM head reads; mostly the same.
        embeddings: `[t, d]` the decoder's inputs, images in them.
        image_index: `[t]`, -1 for text.
        ids: `[t]` tokens, images' placeholders among them.
        tokens: `[a]`, what was said behind each of the answer's positions; -1 where nothing was.
        positions: `[t]`, or `[3, t]` under M-RoPE, what the rotary embedding saw.
        key: of the question.
    """

    features: Tensor
    hidden: Tensor
    embeddings: Tensor
    image_index: Tensor
    ids: Tensor
    tokens: Tensor
    positions: Tensor
    key: str = ""

    @property
    def answer_start(self) -> int:
        """Position of the answer's first token."""
        return len(self.ids) - len(self.tokens)


@torch.inference_mode()
def look(target: Target, question: Question, answer: Answer, layers: Sequence[int] = ()) -> Sample:
    """Run the target over a question and, as it was said, its answer.

    An end-of-sequence token is not run: nothing is drafted behind it.

    Args:
        layers: whose hidden states are the features; see `Target.prefill`.
    """
    prompt = question.encode(target)
    ids = list(answer.token_ids)
    ended = len(ids) > 1 and ids[-1] in target.eos_token_ids
    last = ids.pop() if ended else -1
    said = torch.tensor([ids], device=target.device)
    n = said.shape[1]
    place = torch.arange(n, device=target.device)[None]
    cache = target.new_cache(1, len(prompt) + n)
    seen = target.prefill(prompt, cache, 0, layers)
    first = len(prompt) + int(cache.offset[0])
    then = target.verify(
        Tree(said, place - 1, place, n - 1, torch.zeros(1, n)), cache, layers=layers
    )
    assert seen.positions is not None
    assert seen.hidden is not None
    behind = (first + place[0]).expand(*seen.positions.shape[:-1], -1)
    return Sample(
        torch.cat([seen.features, then.features[0]]),
        torch.cat([seen.hidden, then.hidden[0]]),
        torch.cat([seen.embeddings, target.embedding(said)[0]]),
        torch.cat([seen.image_index, torch.full_like(said[0], -1)]),
        torch.tensor([*prompt.ids, *ids], device=target.device),
        torch.tensor([*ids[1:], last], device=target.device),
        torch.cat([seen.positions, behind], -1),
        question.key,
    )


class _Lost:
    """Questions whose pictures could still be read when they were asked about.

    Args:
        asked: how many there are in all.
    """

    def __init__(self, asked: int) -> None:
        self.most = max(MISSED, asked // 10)
        self.keys: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def add(self, key: str, error: ImageError) -> None:
        """Name one more, and raise `VispecError` if that makes too many."""
        print(f"left out {key}: {error}", file=sys.stderr, flush=True)
        self.keys.add(key)
        if len(self.keys) > self.most:
            raise VispecError(
                f"{len(self.keys)} pictures cannot be read any more; are they where they were?"
            ) from error


class Online(Sequence[Sample]):
    """Samples worked out whenever they are asked for.

    The next one stands for one whose picture cannot be read any more, which is named.

    Raises:
        VispecError: if more than a tenth of the pictures cannot be read any more.
    """

    def __init__(
        self,
        target: Target,
        questions: Sequence[Question],
        answers: Mapping[str, Answer],
        layers: Sequence[int] = (),
    ) -> None:
        self.target, self.questions, self.answers = target, questions, answers
        self.layers = tuple(layers)
        self._lost = _Lost(len(questions))

    @property
    def keys(self) -> list[str]:
        """Of the questions."""
        return [question.key for question in self.questions]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first = range(len(self))[index]
        for number in chain(range(first, len(self)), range(first)):
            if (sample := self._seen(self.questions[number])) is not None:
                return sample
        raise VispecError("no picture can be read any more; are they where they were?")

    def _seen(self, question: Question) -> Sample | None:
        """What the target saw, or nothing where a picture cannot be read any more."""
        if question.key in self._lost:
            return None
        try:
            sample = look(self.target, question, self.answers[question.key], self.layers)
        except ImageError as error:
            self._lost.add(question.key, error)
            return None
        # What was made in inference mode cannot be trained with.
        kept: dict[str, Any] = {
            k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(sample).items()
        }
        return Sample(**kept)


class Store(Sequence[Sample]):
    """Samples kept in a folder, a shard of them a file, read when they are asked for.

    Embeddings of text are looked up again rather than kept. A shard that cannot be opened is left
    out. A sample that is no more what was written, which is looked at when it is first read, stands
    for the next one that is. Both are named in `damaged`.

    Args:
        folder: made by `collect`.
        target: whose token embedding is looked up.
        layered: give the features of the layers that were collected; else the last hidden states.
    """

    def __init__(self, folder: Path, target: Target, layered: bool = True) -> None:
        self.folder, self.layered = folder, layered
        self.damaged: list[str] = []
        self.places: list[tuple[Path, int]] = []
        for path in sorted(folder.glob("features-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    facts = file.metadata() or {}
                    count = len(json.loads(facts["sums"]))
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                self._leave_out(f"{path} ({error})")
                continue
            self.places += [(path, i) for i in range(count)]
        self._whole: dict[int, bool] = {}
        self._opened = lru_cache(maxsize=256)(lambda path: _Shard(path, target.embedding))

    def _leave_out(self, what: str) -> None:
        self.damaged.append(what)
        print(f"left out damaged features: {what}", file=sys.stderr, flush=True)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first = range(len(self))[index]
        for number in chain(range(first, len(self)), range(first)):
            if self._is_whole(number):
                path, place = self.places[number]
                sample: Sample = self._opened(path).sample(place)
                return sample if self.layered else replace(sample, features=sample.hidden)
        raise VispecError(f"all features in {self.folder} are damaged; remove them, and repeat")

    def _is_whole(self, number: int) -> bool:
        """Whether a sample is what was written."""
        if number not in self._whole:
            path, place = self.places[number]
            try:
                self._whole[number] = self._opened(path).is_whole(place)
            except (SafetensorError, OSError):
                self._whole[number] = False
            if not self._whole[number]:
                self._leave_out(f"sample {place} of {path}")
        return self._whole[number]

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    @property
    def keys(self) -> list[str]:
        """Of the questions."""
        return [self._opened(path).asked[place] for path, place in self.places]

    @property
    def bytes_per_token(self) -> float:
        """Of disk, images' positions counted like those of text."""
        size = sum(path.stat().st_size for path in {path for path, _ in self.places})
        positions = 0
        for path in {path for path, _ in self.places}:
            with safe_open(path, "pt") as file:
                positions += int(file.metadata()["positions"])
        return size / max(1, positions)


def collect(
    target: Target,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    folder: Path,
    *,
    layers: Sequence[int] = (),
    precision: Precision = "bfloat16",
    worker: int = 0,
    workers: int = 1,
) -> Store:
    """Keep the features of every answered question.

    Shards already in `folder` are left as they are, and damaged ones made again. A question whose
    picture cannot be read any more is left out, and named.

    Args:
        layers: whose hidden states are kept; see `Target.prefill`.
        precision: of what is kept. `int8` has one scale a row.
        worker, workers: which of how many that share the folder this one is.

    Returns:
        what is there by now.

    Raises:
        VispecError: as soon as it can be told that the disk has no room for all of them; if more
            than a tenth of the pictures cannot be read any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = [question for question in questions if question.key in answers]
    groups = {
        folder / f"features-{start:06d}.safetensors": asked[start : start + SHARD]
        for start in range(worker * SHARD, len(asked), workers * SHARD)
    }
    waiting = {path: group for path, group in groups.items() if not _whole(path, group)}
    lost = _Lost(len(asked))
    with Progress("features", sum(map(len, waiting.values())), "positions") as progress:
        for done, (path, group) in enumerate(waiting.items()):
            # Off the device one by one: together they may be larger than what it has left.
            made: list[Sample] = []
            for question in group:
                try:
                    made.append(at_hand(look(target, question, answers[question.key], layers)))
                except ImageError as error:
                    lost.add(question.key, error)
            _write(made, [question.key for question in group], path, target, precision)
            if not done:
                _refuse_without_room(path, (len(waiting) - 1) * workers)
            progress.add(len(group), sum(len(sample.features) for sample in made))
    return Store(folder, target)


def _refuse_without_room(shard: Path, further: int) -> None:
    """Raise if as many more shards of that size do not fit on the disk."""
    needed, free = shard.stat().st_size * further, shutil.disk_usage(shard.parent).free
    if needed > free:
        raise VispecError(
            f"features would take {needed / 1e9:.0f} GB more, and {free / 1e9:.0f} are free in"
            f" {shard.parent}; keep them in fewer bits (features = 'int8'), work them out anew for"
            " every step ('online'), or ask less"
        )


@torch.inference_mode()
def _write(
    made: Sequence[Sample],
    asked: Sequence[str],
    path: Path,
    target: Target,
    precision: Precision,
) -> None:
    tensors: dict[str, Tensor] = {}
    sums = []
    for i, sample in enumerate(made):
        own: dict[str, Tensor] = {}
        # What is no token's own embedding is kept: images.
        ids = sample.ids.to(target.embedding.weight.device)
        kept = (target.embedding(ids).cpu() != sample.embeddings).any(-1)
        same = torch.equal(sample.features, sample.hidden)
        for name, value in (
            ("features", sample.features),
            ("hidden", sample.hidden[:0] if same else sample.hidden),
            ("shown", sample.embeddings[kept]),
        ):
            for part, tensor in _packed(value, precision).items():
                own[f"{name}{part}"] = tensor
        own["kept"], own["ids"], own["tokens"] = kept, sample.ids.int(), sample.tokens.int()
        own["image_index"] = sample.image_index.to(torch.int16)
        own["positions"] = sample.positions.int()
        sums.append(_sum(own[name] for name in sorted(own)))
        tensors |= {f"{i}.{name}": value.contiguous() for name, value in own.items()}
    facts = {
        "positions": str(sum(len(sample.features) for sample in made)),
        "keys": json.dumps([sample.key for sample in made]),
        "asked": json.dumps(asked),
        "sums": json.dumps(sums),
    }
    with saving(path):
        save_file(tensors, path.with_suffix(".tmp"), metadata=facts)
    path.with_suffix(".tmp").replace(path)


def at_hand(sample: Sample) -> Sample:
    """In main memory."""
    moved: dict[str, Any] = {
        name: value.cpu() if isinstance(value, Tensor) else value
        for name, value in vars(sample).items()
    }
    return Sample(**moved)


def _whole(path: Path, group: Sequence[Question]) -> bool:
    """Whether a shard is there, can be read, and was made of just these."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            keys = json.loads(facts.get("asked", facts.get("keys", "[]")))
    except (SafetensorError, OSError, ValueError):
        return False
    return "sums" in facts and bool(keys == [question.key for question in group])


class _Shard:
    """An opened file of samples."""

    def __init__(self, path: Path, embedding: nn.Embedding) -> None:
        self.file, self.embedding = safe_open(path, "pt"), embedding
        self.names = frozenset(self.file.keys())
        facts = self.file.metadata() or {}
        self.asked: list[str] = json.loads(facts["keys"])
        self.sums: list[int] = json.loads(facts["sums"])

    def is_whole(self, i: int) -> bool:
        """Whether a sample is what was written."""
        names = sorted(name for name in self.names if name.startswith(f"{i}."))
        return _sum(self.file.get_tensor(name) for name in names) == self.sums[i]

    def sample(self, i: int) -> Sample:
        ids, tokens = self._part(i, "ids").long(), self._part(i, "tokens").long()
        features, hidden = self._number(i, "features"), self._number(i, "hidden")
        with torch.no_grad():
            embeddings = self.embedding(ids.to(self.embedding.weight.device)).cpu()
        embeddings[self._part(i, "kept")] = self._number(i, "shown").to(embeddings.dtype)
        return Sample(
            features,
            hidden if len(hidden) else features,
            embeddings,
            self._part(i, "image_index").long(),
            ids,
            tokens,
            self._part(i, "positions").long(),
            self.asked[i],
        )

    def _part(self, i: int, name: str) -> Tensor:
        found: Tensor = self.file.get_tensor(f"{i}.{name}")
        return found

    def _number(self, i: int, name: str) -> Tensor:
        value = self._part(i, name)
        if f"{i}.{name}.scale" in self.names:
            return value * self._part(i, f"{name}.scale")
        return value


def _sum(tensors: Iterable[Tensor]) -> int:
    """Of all bytes, eight at once, so that it costs hardly more than reading them."""
    found = 0
    for tensor in tensors:
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        whole = len(flat) // 8 * 8
        words = flat[:whole].clone().view(torch.int64)
        found = (31 * found + int(words.sum()) + int(flat[whole:].sum())) % (1 << 63)
    return found


def _packed(value: Tensor, precision: Precision) -> dict[str, Tensor]:
    """What is kept of numbers `[n, …]`, by the end of its name."""
    if precision != "int8":
        return {"": value.to(getattr(torch, precision))}
    whole, scale = rounded(value)
    return {"": whole, ".scale": scale}
