"""Tables and picture of the README say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import report
from benchmarks.test_speed_report import RESULT
from vispec.checkpoints.files import fingerprint


def test_results_of_other_weights_say_so() -> None:
    own = fingerprint(report.MODELS / "target")
    assert report.of_another_pair({"weights": {"target": own}}) == ""
    late = {"commit": "abc", "repeats": [{"commit": "abc"}, {"commit": "abc changed"}]}
    assert report.of_another_pair(late) == "\n\n*Measured with code that was not committed.*"
    told = report.of_another_pair({"weights": {"target": own, "draft": "0123"}})
    assert "(draft)" in told


def test_acceptance_stands_beside_that_of_tables() -> None:
    row = {
        "task": "read", "bits_per_token": 0.5, "bigrams": 1.5, "bigrams_any_tree": 1.9,
        "prompt_lookup": 1.1, "draft": 2.5, "advantage": 2.5 / 1.5, "reached": True,
        "table": 70,
    }  # fmt: skip
    text = report.acceptance({"acceptance": [row], "command": "it --answers ANSWERS"})
    assert text.splitlines()[2:] == [
        "| text, read | 0.50 | 1.50 | 1.90 | 1.10 | 2.50 | 1.67x | reached | 1.32x |",
        "",
        "The tables of bigrams are of answers that the draft learnt from: 70 (text, read). "
        "The aim is judged by the draft's own tree; bigrams, which foresee little, do better with a"
        " wider and shorter one.",
    ]
    other = report.acceptance({"acceptance": [row], "command": "it --table 70"})
    assert "of answers to other questions" in other


def test_what_was_missed_is_said() -> None:
    measure = {
        "name": "words", "items": 9, "true": 0.1517, "swapped": 1.2, "least": 0.15,
        "gain": None, "lower_is_better": True, "reached": False,
    }  # fmt: skip
    line = report.sight({"quality": [measure]}).splitlines()[2]
    assert line == "| words | 9 | 0.152 | 1.200 | at most 0.15 | **not reached** |"


def test_parts_replace_what_stands_between_their_marks_and_nothing_else() -> None:
    page = "above\n<!-- speed -->\nold | table\n<!-- end speed -->\nbelow\n"
    once = report.written(page, {"speed": r"new \1 table"})
    assert once == "above\n<!-- speed -->\n\nnew \\1 table\n\n<!-- end speed -->\nbelow\n"
    assert report.written(once, {"speed": r"new \1 table"}) == once
    with pytest.raises(ValueError, match="no <!-- other -->"):
        report.written(page, {"other": "x"})


def test_the_readme_says_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report.main(["--check"])
    # And it would be noticed if it did not.
    (tmp_path / "embedded-cpu.json").write_text(json.dumps(RESULT))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="pages or pictures"):
        report.main(["--check"])
