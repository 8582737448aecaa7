"""`vispec generate` answers on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from command_line import QUESTION, Pair, Run
from vispec.cli.parser import tree_shape
from vispec.cli.terminal import Screen
from vispec.decoding.tree import TreeShape

STATS = {"tokens_per_s", "acceptance_length", "target_passes", "new_tokens"}


@dataclass(frozen=True)
class Spoken:
    text: str
    drafted: bool


def models(pair: Pair) -> list[object]:
    return ["--target", pair.target, "--draft", pair.draft]


def test_json_is_one_object_with_text_tokens_and_stats(run: Run, pair: Pair, photo: Path) -> None:
    ran = run("generate", *models(pair), "--image", photo, "-n", 12, "--json", QUESTION)
    assert ran.code == 0
    answer = json.loads(ran.out)
    assert set(answer) == {"text", "token_ids", "finish_reason", "stats"}
    assert len(answer["token_ids"]) == answer["stats"]["new_tokens"] <= 12
    assert set(answer["stats"]) >= STATS
    assert ran.out.count("\n") == 1


def test_an_image_may_be_an_address_that_holds_it(run: Run, pair: Pair, photo: Path) -> None:
    held = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()
    words = ["generate", *models(pair), "-n", 8, "--json", QUESTION, "--image"]
    texts = [json.loads(run(*words, image).out)["text"] for image in (photo, held)]
    assert texts[0] == texts[1]
    refused = run(*words, "https://example.org/cat.jpg")
    assert refused.code != 0
    assert "example.org" in refused.err


def test_a_pipe_gets_the_bare_text(run: Run, pair: Pair, photo: Path) -> None:
    words = [*models(pair), "--image", photo, "-n", 12, QUESTION]
    ran = run("generate", *words)
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert ran.out == json.loads(run("generate", "--json", *words).out)["text"] + "\n"
    assert ran.err == ""


@pytest.mark.parametrize("sampling", [[], ["--temperature", 1.5, "--seed", 3]])
def test_plain_gives_the_same_tokens(run: Run, pair: Pair, photo: Path, sampling: list) -> None:
    words = [*models(pair), "-i", photo, "-i", photo, "-n", 24, "--json", *sampling, QUESTION]
    drafted = json.loads(run("generate", *words).out)
    plain = json.loads(run("generate", "--plain", *words).out)
    assert drafted["token_ids"] == plain["token_ids"]
    assert plain["stats"]["accepted_tokens"] == 0


def test_the_prompt_may_come_from_a_pipe(
    run: Run, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*models(pair), "-n", 8, "--json"]
    expected = json.loads(run("generate", *words, QUESTION).out)["token_ids"]
    for prompt in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION + "\n"))
        assert json.loads(run("generate", *words, *prompt).out)["token_ids"] == expected


def test_every_option_of_sampling_and_speculation_is_understood(run: Run, pair: Pair) -> None:
    sampled = "--temperature 0.9 --top-p 0.8 --top-k 40 --min-p 0.01 --repetition-penalty 1.1"
    for more in (
        "--tree 6,2,3",
        "--tree 3",
        "--accept stochastic",
        "--dtype float64",
        "--device cpu",
        "--device auto",
        "--frames 4",
    ):
        words = [*sampled.split(), *more.split(), "--seed", 5, "--stop", "zzz", "--stop", "yyy"]
        ran = run("generate", *models(pair), *words, "-n", 6, "--json", QUESTION)
        assert ran.code == 0, ran.err
        assert len(json.loads(ran.out)["token_ids"]) <= 6


def test_another_target_without_a_draft_decodes_plainly_and_says_so(run: Run, pair: Pair) -> None:
    ran = run("generate", "--target", pair.target, "-n", 4, "--json", QUESTION)
    assert ran.code == 0
    assert "no --draft given" in ran.err
    assert "plainly" in ran.err
    assert json.loads(ran.out)["stats"]["accepted_tokens"] == 0
    quiet = run("generate", "--target", pair.target, "--draft", "none", "-n", 4, QUESTION)
    assert quiet.code == 0
    assert quiet.err == ""


def spoken(console: Console, pieces: list[Spoken]) -> str:
    Screen(console).stream(iter(pieces))
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_a_terminal_marks_drafted_tokens_and_a_pipe_does_not() -> None:
    pieces = [Spoken("a ", False), Spoken("red", True), Spoken(" [b]circle[/b] :smile:\n", False)]
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=20)
    assert spoken(terminal, pieces) == "a \x1b[4;32mred\x1b[0m [b]circle[/b] :smile:\n\n"
    pipe = Console(file=io.StringIO())
    assert spoken(pipe, pieces) == "a red [b]circle[/b] :smile:\n\n"


def test_a_terminal_never_obeys_escape_sequences_of_the_model() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    said = spoken(terminal, [Spoken("a\x1b[2Jb\x07c\x9bd\n", False)])
    assert said == "a[2Jbcd\n\n"


def test_text_shows_up_piece_by_piece() -> None:
    console = Console(file=io.StringIO())

    def pieces() -> Iterator[Spoken]:
        yield Spoken("first", False)
        assert console.file.getvalue() == "first"  # type: ignore[attr-defined]
        yield Spoken(" second", True)

    Screen(console).stream(pieces())


def test_trees_are_spelt_as_three_numbers_or_one() -> None:
    assert tree_shape("30,4,8") == TreeShape(30, 4, 8)
    assert tree_shape("5") == TreeShape.chain(5)
