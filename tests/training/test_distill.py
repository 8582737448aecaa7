"""Answers are asked for once each, however often the run is killed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import talking
import tiny
from vispec.decoding.engine import Engine, Request, Result
from vispec.training import distill as module
from vispec.training.distill import Question, distill, read_answers


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(talking.target(), tiny.draft(), max_batch=3)


def questions(count: int = 7) -> list[Question]:
    """With and without pictures, greedy and sampled."""
    return [
        Question(
            f"key-{i}",
            f"the {talking.LETTERS[i]}",
            [lambda i=i: talking.picture(i)] if i % 2 else [],
            (0.0, 1.0)[i % 3 == 0],
        )
        for i in range(count)
    ]


class Counting:
    """An engine that remembers what it was asked, and may be killed."""

    def __init__(self, engine: Engine, calls: int = 99) -> None:
        self.engine, self.calls = engine, calls
        self.asked: list[str] = []

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.asked += [str(request.prompt) for request in requests]
        return self.engine.generate(requests)


def run(engine: Any, file: Path, count: int = 7) -> dict[str, module.Answer]:
    return distill(engine, questions(count), file, max_new_tokens=9, batch=2)


@pytest.fixture(scope="module")
def uninterrupted(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    run(engine, file)
    return file.read_bytes()


def test_every_question_is_answered_as_the_engine_answers_it(
    engine: Engine, tmp_path: Path
) -> None:
    found = run(engine, tmp_path / "new" / "folder" / "answers.jsonl")
    assert list(found) == [q.key for q in questions()]
    for seed, question in enumerate(questions()):
        (result,) = engine.generate([question.request(9, seed)])
        assert found[question.key].token_ids == result.token_ids
        assert found[question.key].text == result.text


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_killed_run_goes_on_where_it_was(
    engine: Engine, uninterrupted: bytes, tmp_path: Path, calls: int
) -> None:
    file = tmp_path / "answers.jsonl"
    killed = Counting(engine, calls)
    with pytest.raises(KeyboardInterrupt):
        run(killed, file)
    resumed = Counting(engine)
    found = run(resumed, file)
    assert killed.asked + resumed.asked == [q.prompt for q in questions()]
    assert file.read_bytes() == uninterrupted
    assert len(found) == 7


def test_a_line_cut_short_anywhere_is_asked_again_and_nothing_else(
    engine: Engine, uninterrupted: bytes, tmp_path: Path
) -> None:
    lines = uninterrupted.splitlines(keepends=True)
    file, whole = tmp_path / "answers.jsonl", b"".join(lines[:5])
    for cut in (1, 2, len(lines[5]) // 2, len(lines[5]) - 2, len(lines[5]) - 1):
        file.write_bytes(whole + lines[5][:cut])
        assert set(read_answers(file)) == {f"key-{i}" for i in range(5)}
        assert file.read_bytes() == whole
        file.write_bytes(whole + lines[5][:cut])
        resumed = Counting(engine)
        run(resumed, file)
        assert resumed.asked == [q.prompt for q in questions()[5:]]
        assert file.read_bytes() == uninterrupted


def test_a_finished_run_asks_nothing(engine: Engine, uninterrupted: bytes, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(uninterrupted)
    done = Counting(engine, calls=0)
    assert run(done, file) == read_answers(file)
    assert file.read_bytes() == uninterrupted


def test_answers_of_other_questions_stay_in_the_file_but_are_not_returned(
    engine: Engine, uninterrupted: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(uninterrupted)
    found = run(Counting(engine, calls=0), file, count=3)
    assert set(found) == {"key-0", "key-1", "key-2"}
    assert len(read_answers(file)) == 7


def test_text_of_every_kind_comes_back_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    texts = ["", "a\nb\r\nc", "\u2028\u0085", "é 好 🎈", '"{}\\', "\x00\x1c"]
    with file.open("w") as out:
        for i, text in enumerate(texts):
            out.write(json.dumps({"key": str(i), "token_ids": [i], "text": text}) + "\n")
    assert [answer.text for answer in read_answers(file).values()] == texts


def test_no_file_holds_no_answers(tmp_path: Path) -> None:
    assert read_answers(tmp_path / "none.jsonl") == {}
    (tmp_path / "empty.jsonl").touch()
    assert read_answers(tmp_path / "empty.jsonl") == {}
