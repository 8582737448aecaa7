"""Answers are asked for once each, however often the run is killed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import talking
import tiny
from full_disk import full
from vispec.decoding.engine import Engine, Request, Result
from vispec.errors import VispecError
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
        self.engine, self.calls, self.target = engine, calls, engine.target
        self.asked: list[str] = []

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.asked += [str(request.prompt) for request in requests]
        return self.engine.generate(requests)


def run(engine: Any, folder: Path, count: int = 7, **options: Any) -> module.Answers:
    return distill(engine, questions(count), folder, max_new_tokens=9, batch=2, **options)


def files(folder: Path) -> dict[str, Any]:
    return {path.name: module._read(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(engine, folder)
    return folder


def test_every_question_is_answered_as_the_engine_answers_it(
    engine: Engine, tmp_path: Path
) -> None:
    found = run(engine, tmp_path / "new" / "folder")
    assert list(found) == [q.key for q in questions()]
    for seed, question in enumerate(questions()):
        (result,) = engine.generate([question.request(9, seed)])
        assert found[question.key].token_ids == result.token_ids
        assert found[question.key].text == result.text


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_killed_run_goes_on_where_it_was(
    engine: Engine, whole: Path, tmp_path: Path, calls: int
) -> None:
    killed = Counting(engine, calls)
    with pytest.raises(KeyboardInterrupt):
        run(killed, tmp_path)
    (tmp_path / f"answers-{calls:06d}.99.tmp").write_bytes(b"half of it")
    resumed = Counting(engine)
    found = run(resumed, tmp_path)
    assert killed.asked + resumed.asked == [q.prompt for q in questions()]
    (tmp_path / f"answers-{calls:06d}.99.tmp").unlink()
    assert files(tmp_path) == files(whole)
    assert len(found) == 7


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_share_the_questions(
    engine: Engine, whole: Path, tmp_path: Path, workers: int
) -> None:
    asked = []
    for worker in reversed(range(workers)):
        counting = Counting(engine)
        found = run(counting, tmp_path, worker=worker, workers=workers)
        asked += counting.asked
    assert sorted(asked) == sorted(str(q.prompt) for q in questions())
    assert files(tmp_path) == files(whole)
    assert len(found) == 7


def test_a_finished_run_asks_nothing(engine: Engine, whole: Path) -> None:
    before = files(whole)
    assert dict(run(Counting(engine, calls=0), whole)) == dict(read_answers(whole))
    assert files(whole) == before


def test_a_damaged_file_is_named_and_asked_again(
    engine: Engine, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shard = tmp_path / "answers-000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    left = read_answers(tmp_path)
    assert len(left) == 5
    assert left.damaged == [str(shard)]
    assert str(shard) in capsys.readouterr().err
    resumed = Counting(engine)
    run(resumed, tmp_path)
    assert resumed.asked == [q.prompt for q in questions()[2:4]]
    assert files(tmp_path) == files(whole)


def test_a_byte_that_changed_on_the_disk_is_never_taken_for_an_answer(
    whole: Path, tmp_path: Path
) -> None:
    written = (whole / "answers-000000.parquet").read_bytes()
    pages = len(written) - int.from_bytes(written[-8:-4], "little") - 8
    shard = tmp_path / "answers-000000.parquet"
    seen = 0
    for place in range(4, pages, 3):
        changed = bytearray(written)
        changed[place] ^= 0x55
        shard.write_bytes(changed)
        found = module._read(shard)
        assert found is None or found == module._read(whole / "answers-000000.parquet")
        seen += found is None
    assert seen > pages / 6


def test_answers_to_other_questions_are_not_taken_for_ours(engine: Engine, whole: Path) -> None:
    with pytest.raises(VispecError, match="other questions"):
        distill(engine, questions()[1:], whole, max_new_tokens=9, batch=2)
    # Nor are those to the same ones, asked otherwise.
    asked = questions()
    for changed, length in (
        (asked, 8),
        ([replace(asked[0], temperature=0.5), *asked[1:]], 9),
        ([replace(asked[0], prompt="something else"), *asked[1:]], 9),
    ):
        with pytest.raises(VispecError, match="another temperature or length"):
            distill(engine, changed, whole, max_new_tokens=length, batch=2)


def test_a_picture_that_was_replaced_is_another_question(tmp_path: Path) -> None:
    path = tmp_path / "it.png"
    asked = [Question("a", "the cat", [path])]
    marks = set()
    for size in (8, 16):
        talking.picture(1).resize((size, size)).save(path)
        marks.add(module.digest(asked, 9))
    path.unlink()
    marks.add(module.digest(asked, 9))
    assert len(marks) == 3


def test_two_questions_of_one_key_are_refused(engine: Engine, tmp_path: Path) -> None:
    asked = questions()
    with pytest.raises(VispecError, match="1 keys name more than one question"):
        distill(engine, [*asked, replace(asked[0], prompt="other")], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_question_that_cannot_be_asked_is_skipped_and_named(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    asked = questions(3)
    asked[1] = Question("bad", "the b", [str(broken)])
    counting = Counting(engine)
    found = distill(counting, asked, tmp_path / "out", max_new_tokens=9, batch=3)  # type: ignore[arg-type]
    assert set(found) == {"key-0", "key-2"}
    assert "broken.jpg" in found.errors["bad"]
    assert "'bad'" in capsys.readouterr().err
    (again,) = engine.generate([asked[2].request(9, 2)])
    assert found["key-2"].token_ids == again.token_ids
    done = Counting(engine, calls=0)
    assert set(distill(done, asked, tmp_path / "out", max_new_tokens=9, batch=3)) == set(found)  # type: ignore[arg-type]
    asked[1] = Question("cold", "the b", temperature=-1.0)
    found = distill(counting, asked, tmp_path / "cold", max_new_tokens=9, batch=3)  # type: ignore[arg-type]
    assert "-1.0" in found.errors["cold"]


def test_a_full_disk_leaves_nothing_half_written(engine: Engine, tmp_path: Path) -> None:
    given = [module.Answer("a", list(range(100_000)), "")]
    with full(), pytest.raises(OSError, match="File too large"):
        module._write(given, tmp_path / "answers-000000.parquet", "")
    assert not list(tmp_path.iterdir())


def test_datasets_opens_what_is_written(whole: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(
        "parquet", data_files=str(whole / "*.parquet"), split="train", cache_dir=str(whole / "c")
    )
    shutil.rmtree(whole / "c")
    assert rows["key"] == [q.key for q in questions()]
    assert rows["token_ids"] == [a.token_ids for a in read_answers(whole).values()]


def test_text_of_every_kind_comes_back(tmp_path: Path) -> None:
    texts = ["", "a\nb\r\nc", "\u2028\u0085", "é 好 🎈", '"{}\\', "\x00\x1c"]
    given = [module.Answer(str(i), [i], text) for i, text in enumerate(texts)]
    module._write(given, tmp_path / "answers-000000.parquet", "")
    assert list(read_answers(tmp_path).values()) == given


def test_no_folder_holds_no_answers(tmp_path: Path) -> None:
    assert not read_answers(tmp_path / "none")
    assert not read_answers(tmp_path)
