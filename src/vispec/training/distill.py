"""The target writes its own training data.

A draft must guess what the target says, not what is true, so it learns from the target's answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from vispec.decoding.engine import Engine, Request
from vispec.decoding.sampling import Sampling
from vispec.images import ImageSource
from vispec.targets.base import Message, Prompt, Target


@dataclass(frozen=True)
class Question:
    """What the target is asked.

    Attributes:
        key: names the question in the files; unique.
        prompt: the text, or a conversation; see `vispec.messages`.
        images: pictures, or what makes them when they are needed.
        temperature: of the answer.
    """

    key: str
    prompt: str | Sequence[Message]
    images: Sequence[ImageSource | Callable[[], Image.Image]] = ()
    temperature: float = 0.0

    def shown(self) -> list[ImageSource]:
        """Its pictures."""
        return [one() if callable(one) else one for one in self.images]

    def encode(self, target: Target) -> Prompt:
        """As the target's inputs."""
        return target.encode(self.prompt, self.shown())

    def request(self, max_new_tokens: int, seed: int) -> Request:
        """To be asked."""
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=self.temperature, seed=seed)
        return Request(self.prompt, self.shown(), sampling)


@dataclass(frozen=True)
class Answer:
    """What the target said to the question of that key."""

    key: str
    token_ids: list[int]
    text: str


def distill(
    engine: Engine,
    questions: Sequence[Question],
    file: Path,
    *,
    max_new_tokens: int = 128,
    batch: int = 192,
) -> dict[str, Answer]:
    """Answer every question once, however often the run is interrupted.

    Args:
        engine: the target, with a draft where there is one already.
        questions: with unique keys.
        file: one JSON object a line, appended to; answers in it are not asked for again.
        max_new_tokens: longest answer.
        batch: questions asked at once, more than the engine's slots so that none stays idle; they
            are written together.

    Returns:
        the answers to all of `questions`, by key.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    known = read_answers(file)
    waiting = [
        (seed, question) for seed, question in enumerate(questions) if question.key not in known
    ]
    begun, tokens = time.monotonic(), 0
    for start in range(0, len(waiting), batch):
        group = waiting[start : start + batch]
        results = engine.generate([q.request(max_new_tokens, seed) for seed, q in group])
        with file.open("a", encoding="utf-8") as out:
            for (_, question), result in zip(group, results, strict=True):
                answer = Answer(question.key, result.token_ids, result.text)
                known[question.key] = answer
                tokens += len(result.token_ids)
                out.write(json.dumps(asdict(answer)) + "\n")
        spent, done = time.monotonic() - begun, start + len(group)
        if (start // batch) % 2 or done == len(waiting):
            left = spent / done * (len(waiting) - done)
            print(
                f"distilled {done}/{len(waiting)} answers, {tokens / spent:.0f} tokens/s,"
                f" {left:.0f} s left",
                flush=True,
            )
    return {question.key: known[question.key] for question in questions}


def read_answers(file: Path) -> dict[str, Answer]:
    """The answers in a file; a line that a kill cut short is dropped from it."""
    if not file.exists():
        return {}
    answers, whole = {}, 0
    data = file.read_bytes()
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        whole += len(line)
        answer = Answer(**json.loads(line))
        answers[answer.key] = answer
    if whole != len(data):
        with file.open("r+b") as out:
            out.truncate(whole)
    return answers
