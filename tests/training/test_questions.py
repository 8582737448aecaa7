"""Questions from folders and datasets, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import talking
from vispec.errors import ImageError, SettingsError
from vispec.training import questions as module
from vispec.training.questions import LONGER, Source, questions, refuse_shared


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        talking.picture(i).save(tmp_path / f"{i}.png")
    return tmp_path


def lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_lines_bring_prompts_and_pictures(folder: Path) -> None:
    messages = [{"role": "user", "content": "and this?"}]
    rows = [
        {"id": "a", "prompt": "what is it?", "image": "0.png"},
        {"prompt": "which?", "images": ["1.png", "2.png"]},
        {"messages": messages, "image": "2.png"},
        {"prompt": "no picture"},
    ]
    lines(folder / "asked.jsonl", rows)
    for path in (folder, folder / "asked.jsonl"):
        found = questions(Source(str(path)), "mine")
        assert [q.key for q in found] == [
            "mine-asked-a", "mine-asked-2", "mine-asked-3", "mine-asked-4"
        ]  # fmt: skip
        assert [q.prompt for q in found] == ["what is it?", "which?", messages, "no picture"]
        assert [[Path(str(one)).name for one in q.images] for q in found] == [
            ["0.png"], ["1.png", "2.png"], ["2.png"], []
        ]  # fmt: skip
        assert all(Path(str(one)).is_file() for q in found for one in q.images)


def test_pictures_are_asked_prompts_in_turn(folder: Path) -> None:
    (folder / "prompts.txt").write_text("what?\n\nwhere?\n")
    found = questions(Source(str(folder)), "p")
    assert [q.prompt for q in found] == ["what?", "where?", "what?"]
    assert [q.key for q in found] == ["p-0.png", "p-1.png", "p-2.png"]
    assert all(Image.open(str(q.images[0])) for q in found)


def test_what_a_recipe_wants_of_its_rows(folder: Path) -> None:
    lines(folder / "x.jsonl", [{"id": i, "ask": f"q{i}", "pic": "0.png"} for i in range(9)])
    source = Source(str(folder), first=2, limit=3, prompt="ask", image="pic", temperature=0.7)
    found = questions(source, "x")
    assert [q.prompt for q in found] == ["q2", "q3", "q4"]
    assert all(q.temperature == 0.7 and len(q.images) == 1 for q in found)
    blind = questions(Source(str(folder), prompt="ask", image="pic", shown=False), "x")
    assert not any(q.images for q in blind)


def test_rows_without_a_prompt_are_left_out_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a"}, {"id": "bad", "conversations": []}, {"prompt": None}, {"prompt": "b"}]
    lines(folder / "x.jsonl", rows)
    assert [q.prompt for q in questions(Source(str(folder)), "x")] == ["a", "b"]
    assert "skipped 2 rows without a prompt: x-x-bad, x-x-3" in capsys.readouterr().err


def test_rows_with_nonsense_are_left_out_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = (-1, "hot", True, float("nan"), float("inf"))
    rows = [{"prompt": "a", "temperature": None}, *({"prompt": "b", "temperature": t} for t in bad)]
    lines(folder / "x.jsonl", [*rows, {"no": "prompt"}, {"prompt": "c", "temperature": 2}])
    found = questions(Source(str(folder), temperature=0.5), "x")
    assert [(q.prompt, q.temperature) for q in found] == [("a", 0.5), ("c", 2)]
    said = capsys.readouterr().err
    assert "skipped 5 rows with a temperature that is none: x-x-2, x-x-3, x-x-4 …" in said
    assert "skipped 1 rows without a prompt: x-x-7" in said
    lines(folder / "x.jsonl", [rows[1], {"no": "prompt"}])
    with pytest.raises(SettingsError, match="holds no questions"):
        questions(Source(str(folder)), "x")


def test_what_is_no_picture_is_named_when_it_is_asked_about(folder: Path) -> None:
    rows = [{"prompt": "a", "images": [None]}, {"prompt": "b", "images": [5, "0.png"]}]
    lines(folder / "x.jsonl", rows)
    empty, wrong = questions(Source(str(folder)), "x")
    assert empty.shown() == []
    with pytest.raises(ImageError, match="object of type int"):
        wrong.encode(talking.target())


def test_files_that_are_no_text_are_named(folder: Path) -> None:
    for name, words in (
        ("x.jsonl", r"line 1 of .*x\.jsonl"),
        ("prompts.txt", r"prompts\.txt is no"),
    ):
        (folder / name).write_bytes(b'{"prompt": "\xff"}')
        with pytest.raises(SettingsError, match=words):
            questions(Source(str(folder)), "x")
        (folder / name).unlink()
    (folder / "prompts.txt").write_text("\n \n")
    with pytest.raises(SettingsError, match=r"prompts\.txt holds no prompts"):
        questions(Source(str(folder)), "x")


def test_every_question_has_a_key_of_its_own(folder: Path) -> None:
    lines(folder / "x.jsonl", [{"id": "a", "prompt": p} for p in ("one", "two", "three")])
    found = questions(Source(str(folder)), "x")
    assert [q.key for q in found] == ["x-x-a", "x-x-a-2", "x-x-a-3"]
    assert [q.prompt for q in found] == ["one", "two", "three"]


def test_a_row_may_say_how_it_is_answered(folder: Path) -> None:
    lines(folder / "x.jsonl", [{"prompt": "a", "temperature": 1.0}, {"prompt": "b"}])
    found = questions(Source(str(folder), temperature=0.5), "x")
    assert [q.temperature for q in found] == [1.0, 0.5]


def test_conversations_end_with_the_user(folder: Path) -> None:
    shown = [{"type": "image"}, {"type": "text", "text": "what?"}]
    rows = [
        [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": shown},
            {"role": "assistant", "content": "a cat"},
        ],
        [{"role": "user", "content": "hi"}],
        [{"role": "assistant", "content": "hello"}],
    ]
    lines(folder / "x.jsonl", [{"id": i, "messages": row} for i, row in enumerate(rows)])
    plain = questions(Source(str(folder)), "x")
    assert [q.prompt for q in plain] == [rows[0][:4], rows[1]]
    for asked in questions(Source(str(folder), longer=True), "x"):
        assert isinstance(asked.prompt, list)
        content = asked.prompt[-1]["content"]
        said = content if isinstance(content, str) else content[-1]["text"]
        assert any(said.endswith(words.strip()) for words in LONGER)
        assert isinstance(content, str) or content[:2] == shown


def test_long_answers_are_asked_for_in_several_ways_but_always_the_same(folder: Path) -> None:
    lines(folder / "x.jsonl", [{"id": i, "prompt": "why?"} for i in range(40)])
    one, two = (questions(Source(str(folder), longer=True), "x") for _ in range(2))
    assert [q.prompt for q in one] == [q.prompt for q in two]
    assert {q.prompt for q in one} == {f"why?{words}" for words in LONGER}


def test_a_question_is_the_same_however_its_words_are_written(folder: Path) -> None:
    """And whether a long answer is asked for or not."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "why?"}]}
    rows = [
        {"prompt": "why?"},
        {"prompt": "<image>\nwhy?"},
        {"messages": [{"role": "user", "content": "why?"}]},
        {"messages": [message]},
    ]
    for number, row in enumerate(rows):
        row = {**row, "image": "0.png"}
        lines(folder / f"{number}.jsonl", [row])
        kept = questions(Source(str(folder / "0.jsonl")), "kept")
        for longer in (False, True):
            asked = questions(Source(str(folder / f"{number}.jsonl"), longer=longer), "asked")
            with pytest.raises(SettingsError, match="share 1 questions"):
                refuse_shared({"asked": asked, "kept": kept}, "kept")
    for other in ({"prompt": "who?", "image": "0.png"}, {"prompt": "why?", "image": "1.png"}):
        lines(folder / "other.jsonl", [other])
        asked = questions(Source(str(folder / "other.jsonl"), longer=True), "asked")
        refuse_shared({"asked": asked, "kept": kept}, "kept")


def test_datasets_of_the_hub_bring_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    picture = talking.picture(0)
    rows = [
        {"id": "a", "image": picture, "conversations": [
            {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]},
        {"id": "b", "image": None, "conversations": [{"from": "human", "value": "hello"}]},
        {"id": "c", "image": picture, "conversations": [{"from": "human", "value": "and?"}]},
    ]  # fmt: skip
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "conversations": [
                {"from": datasets.Value("string"), "value": datasets.Value("string")}
            ],
        }
    )
    made = datasets.Dataset.from_list(rows, features)
    asked: list[Any] = []

    def load(*given: Any, **options: Any) -> Any:
        asked.append((given, options))
        return made

    monkeypatch.setattr(datasets, "load_dataset", load)
    opened: list[int] = []
    cell = module._cell
    monkeypatch.setattr(module, "_cell", lambda *given: opened.append(given[1]) or cell(*given))
    found = questions(Source("someone/data", config="c", split="test"), "d")
    assert asked == [(("someone/data", "c"), {"split": "test"})]
    assert [q.prompt for q in found] == ["what?", "hello", "and?"]
    assert [q.key for q in found] == ["d-a", "d-b", "d-c"]
    assert opened == []
    shown = [[np.asarray(one) for one in q.shown()] for q in found]
    assert [len(one) for one in shown] == [1, 0, 1]
    assert np.array_equal(shown[0][0], np.asarray(picture))
    assert opened == [0, 1, 2]
    (last,) = questions(Source("someone/data", first=2, limit=9), "d")
    assert last.key == "d-c"
    assert np.array_equal(np.asarray(last.shown()[0]), np.asarray(picture))
    assert questions(Source("someone/data", shown=False, limit=1), "d")[0].shown() == []


def test_a_row_of_a_dataset_may_have_several_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [talking.picture(i) for i in range(3)]
    features = datasets.Features(
        {"question": datasets.Value("string"), "pages": [datasets.Image()]}
    )
    rows = [
        {"question": "both?", "pages": pictures[:2]},
        {"question": "it?", "pages": pictures[2:]},
    ]
    made = datasets.Dataset.from_list(rows, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **options: made)
    found = questions(Source("someone/data", image="pages"), "d")
    assert [q.key for q in found] == ["d-0", "d-1"]
    assert [len(q.shown()) for q in found] == [2, 1]


def test_a_picture_of_a_dataset_that_cannot_be_decoded_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"question": datasets.Value("string"), "image": datasets.Image()})
    rows = [{"question": "it?", "image": {"bytes": b"no picture", "path": None}}]
    made = datasets.Dataset.from_list(rows, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **options: made)
    (found,) = questions(Source("someone/data"), "d")
    with pytest.raises(ImageError, match="picture in row 0"):
        found.shown()


def test_what_holds_no_questions_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(SettingsError, match="there is no file"):
        questions(Source(str(tmp_path / "none.jsonl")), "x")
    with pytest.raises(SettingsError, match="holds no questions"):
        questions(Source(str(tmp_path)), "x")
    file = tmp_path / "a.jsonl"
    for text, words in (("{", "line 1 of .* is not JSON"), ("[1]", "is no object")):
        file.write_text(text)
        with pytest.raises(SettingsError, match=words):
            questions(Source(str(file)), "x")
    lines(file, [{"picture": "a.png"}])
    with pytest.raises(SettingsError, match="no prompt among picture, nor has any other"):
        questions(Source(str(file)), "x")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("not found\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(SettingsError, match=r"neither a folder nor a dataset.*\(not found\)"):
        questions(Source("no/where"), "x")
    assert module.__doc__
