"""The target writes its own training data.

A draft must guess what the target says, not what is true, so it learns from the target's answers.
They are kept in Parquet files, which `datasets.load_dataset("parquet", …)` opens: one for every
group of questions, written when all of its answers are there, so that a kill loses the answers of
one group at most and none is ever there twice. Several workers take groups in turn.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vispec.decoding.engine import Engine, Request
from vispec.decoding.sampling import Sampling
from vispec.errors import VispecError
from vispec.images import ImageSource
from vispec.targets.base import Message, Prompt, Target
from vispec.training.progress import Progress
from vispec.writing import replacing_file


@dataclass(frozen=True)
class Question:
    """What the target is asked.

    Attributes:
        key: names the question in the files; unique.
        prompt: the text, or a conversation; see `vispec.messages`.
        images: pictures, or what gives them when they are needed: one, several, or none.
        temperature: of the answer.
    """

    key: str
    prompt: str | Sequence[Message]
    images: Sequence[ImageSource | Callable[[], Image.Image | list[Image.Image] | None]] = ()
    temperature: float = 0.0

    def shown(self) -> list[ImageSource]:
        """Its pictures."""
        found: list[ImageSource] = []
        for one in self.images:
            given = one() if callable(one) else one
            found += given if isinstance(given, list) else [] if given is None else [given]
        return found

    def encode(self, target: Target) -> Prompt:
        """As the target's inputs."""
        return target.encode(self.prompt, self.shown())

    def request(self, max_new_tokens: int, seed: int) -> Request:
        """To be asked."""
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=self.temperature, seed=seed)
        return Request(self.prompt, self.shown(), sampling)


@dataclass(frozen=True)
class Answer:
    """What the target said to the question of that key.

    Attributes:
        error: why it said nothing: the question's picture is damaged, say.
    """

    key: str
    token_ids: list[int]
    text: str
    error: str = ""


class Answers(Mapping[str, Answer]):
    """Answers by key, those with an error left out.

    Attributes:
        errors: why each of those was left out, by key.
        damaged: files that could not be read.
    """

    def __init__(self, found: Sequence[Answer], damaged: Sequence[str] = ()) -> None:
        self._found = {answer.key: answer for answer in found if not answer.error}
        self.errors = {answer.key: answer.error for answer in found if answer.error}
        self.damaged = list(damaged)

    def __getitem__(self, key: str) -> Answer:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def distill(
    engine: Engine,
    questions: Sequence[Question],
    folder: Path,
    *,
    max_new_tokens: int = 128,
    batch: int = 192,
    worker: int = 0,
    workers: int = 1,
) -> Answers:
    """Answer every question once, however often the run is interrupted.

    A question that cannot be asked is skipped: its error is kept in its answer's place, and named
    at the end.

    Args:
        engine: the target, with a draft where there is one already.
        questions: with unique keys.
        folder: of the answers; those in it are not asked for again.
        max_new_tokens: longest answer.
        batch: questions of a group, which are asked at once: more than the engine's slots, so that
            none stays idle.
        worker, workers: which of how many that share the folder this one is.

    Returns:
        the answers to all of `questions` that are there by now.

    Raises:
        VispecError: if two questions have one key, or the folder holds answers to others.
    """
    _refuse_twins(questions)
    folder.mkdir(parents=True, exist_ok=True)
    groups = [questions[start : start + batch] for start in range(0, len(questions), batch)]
    waiting = []
    for number in range(worker, len(groups), workers):
        path = folder / f"answers-{number:06d}.parquet"
        known = _read(path) if path.exists() else None
        if known is None:
            waiting.append(number)
        elif known[1] != digest(groups[number], max_new_tokens):
            raise VispecError(
                f"{path} holds answers to other questions, or to these at another temperature or"
                " length; give another folder, or ask the same in groups of the same size"
            )
    total = sum(len(groups[number]) for number in waiting)
    with Progress("answers", total, "tokens") as progress:
        for number in waiting:
            answers = _asked(engine, groups[number], number * batch, max_new_tokens)
            asked = digest(groups[number], max_new_tokens)
            _write(answers, folder / f"answers-{number:06d}.parquet", asked)
            progress.add(len(answers), sum(len(answer.token_ids) for answer in answers))
    found = read_answers(folder)
    for key, error in found.errors.items():
        print(f"skipped question '{key}': {error}", file=sys.stderr, flush=True)
    return found


def digest(questions: Sequence[Question], max_new_tokens: int) -> str:
    """Of what is asked, and how; pictures by the names and sizes of their files."""
    found = hashlib.sha256(str(max_new_tokens).encode())
    for one in questions:
        pictures = [_file(x) if isinstance(x, str | os.PathLike) else "" for x in one.images]
        facts = [one.key, str(one.prompt), one.temperature, pictures]
        found.update(json.dumps(facts).encode())
    return found.hexdigest()[:16]


def _file(picture: str | os.PathLike[str]) -> tuple[str, int]:
    """A file's name, and how many bytes it has; none where it is gone."""
    path = Path(picture)
    try:
        return path.name, path.stat().st_size
    except (OSError, ValueError):
        return path.name, 0


def _refuse_twins(questions: Sequence[Question]) -> None:
    """Raise for two questions of one key, whose answers could not be told apart."""
    twins = [key for key, count in Counter(q.key for q in questions).items() if count > 1]
    if twins:
        raise VispecError(
            f"{len(twins)} keys name more than one question, '{twins[0]}' for one; give every"
            " question an id of its own"
        )


def _asked(
    engine: Engine, group: Sequence[Question], first: int, max_new_tokens: int
) -> list[Answer]:
    """Answers of a group; the seed of each is its question's place."""
    numbered = list(enumerate(group, first))
    errors: dict[str, str] = {}
    try:
        requests = [question.request(max_new_tokens, seed) for seed, question in numbered]
        results = engine.generate(requests)
    except (VispecError, OSError):
        # Whatever is wrong with one must not keep the others from being asked.
        errors = {q.key: said for q in group if (said := _problem(q, engine.target))}
        if not errors:
            raise
        numbered = [(seed, q) for seed, q in numbered if q.key not in errors]
        results = engine.generate([q.request(max_new_tokens, seed) for seed, q in numbered])
    given = {
        question.key: Answer(question.key, result.token_ids, result.text)
        for (_, question), result in zip(numbered, results, strict=True)
    }
    return [given.get(q.key) or Answer(q.key, [], "", errors[q.key]) for q in group]


def _problem(question: Question, target: Target) -> str:
    """Why a question cannot be asked; nothing if it can."""
    try:
        question.request(1, 0)
        question.encode(target)
    except (VispecError, OSError) as error:
        return str(error)
    return ""


def read_answers(folder: Path) -> Answers:
    """All answers in a folder; files that cannot be read are left out, and named."""
    found: list[Answer] = []
    damaged = []
    # There may be millions of tokens: one number of each.
    same: dict[int, int] = {}
    for path in sorted(folder.glob("answers-*.parquet")):
        known = _read(path)
        if known is None:
            damaged.append(str(path))
            print(f"left out a damaged file of answers: {path}", file=sys.stderr, flush=True)
        else:
            found += [
                replace(answer, token_ids=[same.setdefault(t, t) for t in answer.token_ids])
                for answer in known[0]
            ]
    return Answers(found, damaged)


def _write(answers: Sequence[Answer], path: Path, asked: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    kinds = {"key": pa.string(), "token_ids": pa.list_(pa.int32()), "text": pa.string()}
    table = pa.Table.from_pylist(
        [asdict(answer) for answer in answers],
        schema=pa.schema([*kinds.items(), ("error", pa.string())], {"asked": asked}),
    )
    with replacing_file(path) as fresh:
        parquet.write_table(table, fresh, compression="zstd", write_page_checksum=True)


def _read(path: Path) -> tuple[list[Answer], str] | None:
    """Answers, and the digest of what was asked; None of a file that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path, page_checksum_verification=True)
        rows: list[dict[str, Any]] = table.to_pylist()
        found = [Answer(**row) for row in rows]
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError):
        return None
    return found, (table.schema.metadata or {}).get(b"asked", b"").decode()
