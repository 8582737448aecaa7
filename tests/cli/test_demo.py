"""`vispec demo` shows three cases in both modes and ends with a table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from command_line import Pair, Run
from vispec.checkpoints import files
from vispec.cli import demo
from vispec.training.scenes import split


@pytest.fixture
def tiny_embedded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny pair stand where the embedded one does."""
    monkeypatch.setattr(files, "EMBEDDED", pair.target.parent)
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", 8)
    monkeypatch.setattr(demo, "REPETITIONS", 1)


@pytest.mark.usefixtures("tiny_embedded")
def test_three_cases_in_both_modes_and_a_table(run: Run) -> None:
    ran = run("demo")
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    assert [line.split()[1] for line in table_rows(ran.out)] == ["yes", "yes", "yes"]
    assert ran.out.count("speculative  ") >= 3
    for column in ("tokens/s", "speedup", "acceptance", "median of 1 run of each"):
        assert column in ran.out


@pytest.mark.usefixtures("tiny_embedded")
def test_a_difference_is_shown_and_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.Case, "identical", property(lambda case: case.title != "reading"))
    ran = run("demo")
    assert ran.code == demo.DIFFERS
    assert [line.split()[1] for line in table_rows(ran.out)] == ["yes", "yes", "NO"]


def test_speeds_are_of_the_whole_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(demo.time, "perf_counter", lambda: clock[0])

    class Engine:
        def generate(self, **request: object) -> SimpleNamespace:
            # Four seconds a call, of which its own account knows less.
            clock[0] += 4.0
            return SimpleNamespace(token_ids=[1] * 8, stats=SimpleNamespace(tokens_per_s=99.0))

    cases = list(demo.make_cases(demo.bundled_photo()))
    demo.measure(Engine(), cases)  # type: ignore[arg-type]
    assert {rate for case in cases for rates in case.rates.values() for rate in rates} == {2.0}
    assert len(cases[0].rates["plain"]) == 2  # it ends when 25 seconds are over


def table_rows(out: str) -> list[str]:
    """The lines of the table that start with a case's title and hold a speedup."""
    titles = ("photograph", "question", "reading")
    return [
        line
        for line in out.splitlines()
        if line.split()[:1] and line.split()[0] in titles and line.rstrip().count("x ") == 1
    ]


def test_the_photograph_is_a_colour_picture_that_ships_with_the_package() -> None:
    photo = demo.bundled_photo()
    assert photo.mode == "RGB"
    assert photo.size == (480, 320)


def test_the_scenes_were_held_out_of_training() -> None:
    assert {split(seed) for seed, *_ in demo.SCENES.values()} == {"heldout"}
