"""Tables and picture of the README say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import report
from vispec.checkpoints.files import fingerprint


def row(task: str, method: str, speed: float, **more: Any) -> dict[str, Any]:
    return {
        "task": task, "temperature": 0.0, "method": method, "items": 9, "repeats": 3,
        "tokens_per_s": speed, "tokens_per_s_spread": [speed * 0.9, speed * 1.1],
        "speedup_vs_generate": speed / 50, "speedup_vs_fastest_plain": speed / 80,
        "speedup_vs_generate_spread": [speed / 55, speed / 45],
        "speedup_vs_generate_interval": [speed / 60, speed / 40],
        "speedup_vs_fastest_plain_interval": [speed / 100, speed / 64],
        "fastest_plain": "plain",
    } | more  # fmt: skip


MACHINE = {
    "processor": "A processor", "cores": 4, "flags": ["avx2"], "threads": 2, "torch": "2",
    "transformers": "5", "settings": {"OMP_THING": "1"},
}  # fmt: skip
RESULT = {
    "dtype": "float32",
    "repeats": [
        {
            "date": "2026-01-01",
            "machine": MACHINE,
            "trees": {"vispec": {"size": 9, "depth": 5, "width": 2}},
            "parts": [],
        }
    ] * 3,
    "rows": [
        row("vqa", "generate", 50.0),
        row("vqa", "plain", 80.0),
        row("vqa", "eagle", 152.0),
        row(
            "vqa", "vispec", 160.0, acceptance_length=3.5, share_of_attainable=0.91,
            attainable_vs_same_mode=2.2, same_mode="plain", speedup_vs_same_mode=2.0,
            identical=26, cycles_vs_same_mode=2.4,
            draft_ms_per_pass=1.0, verify_ms_per_pass=6.0, overhead_ms_per_pass=0.25,
            encode_ms=3.0, vision_ms=4.0, prefill_ms=5.0, read_ms=6.0,
        ),
        row("vqa", "eagle-text", 60.0, acceptance_length=1.02),
    ],
}  # fmt: skip


def test_the_headline_names_both_baselines_and_what_was_gained() -> None:
    assert report.headline(RESULT).splitlines()[2] == (
        "| scene, a question | 0 | 50 | 80 (plain) | a tree, compiled | 160 "
        "| 3.20x (2.67 to 4.00) | 2.00x (1.60 to 2.50) | 3.50 | 2.00x | 2.20x (91% reached) "
        "| 26/27 |"
    )


def test_what_is_attainable_is_so_with_the_better_shape_of_the_same_mode() -> None:
    tree, chain, slow = (
        {"same_mode": mode, "attainable_vs_same_mode": bound}
        for mode, bound in (("compiled", 2.0), ("compiled", 2.5), ("plain", 3.0))
    )
    rows = {"vispec": tree, "vispec-chain": chain, "vispec-uncompiled": slow, "generate": {}}
    assert report.attainable(rows, "compiled") == 2.5
    assert report.attainable(rows, "plain") == 3.0


def round_of(date: str, seconds: float) -> dict[str, Any]:
    """With two questions, that `generate` answers in two seconds each."""
    parts = [
        {
            "task": "vqa", "temperature": 0.0, "method": method, "tokens": [4, 6],
            "seconds": [s, s], "passes": 5, "identical": 2, "largest_gap": 0.0, "quality": {},
        }
        for method, s in (("generate", 2.0), ("vispec", seconds))
    ]  # fmt: skip
    return {"date": date, "parts": parts}


def test_days_agree_as_far_as_they_do() -> None:
    days = [round_of("one", 1.0), round_of("one", 0.8), round_of("two", 0.9)]
    assert report.agreement(days[:2]) == ""
    # Speedups of 2 and 2.5, so 2.25; then 2.22.
    text = report.agreement(days)
    assert "Of the 2 speedups" in text
    assert "(1 round) are within 1.2% of the first day's (2): 2 lie in" in text
    far = report.agreement([*days[:2], round_of("two", 4.0)])
    assert "within 77.8% of the first day's (2): 0 lie in" in far
    assert "0 between its own" in far


def test_results_of_other_weights_say_so() -> None:
    own = fingerprint(report.MODELS / "target")
    assert report.of_another_pair({"weights": {"target": own}}) == ""
    told = report.of_another_pair({"weights": {"target": own, "draft": "0123"}})
    assert "(draft)" in told


def test_acceptance_stands_beside_that_of_tables() -> None:
    row = {
        "task": "read", "bits_per_token": 0.5, "bigrams": 1.5, "bigrams_any_tree": 1.9,
        "prompt_lookup": 1.1, "draft": 2.5, "advantage": 2.5 / 1.5, "reached": True,
    }  # fmt: skip
    text = report.acceptance({"acceptance": [row]})
    assert text.splitlines()[2:] == [
        "| text, read | 0.50 | 1.50 | 1.90 | 1.10 | 2.50 | 1.67x | reached | 1.32x |"
    ]


def test_the_conditions_state_machine_spread_and_cycle() -> None:
    text = report.conditions(RESULT)
    for part in (
        "9 held-out items", "3 rounds", "on 1 day", "up to 20%", "2 threads of A processor",
        "4 cores", "OMP_THING=1", "18 ms pass before", "1.0 ms of drafting", "question 2.40x",
        "EAGLE is as fast as ViSpec's tree times: scene, a question 0.95. Photographs",
        "accepts 1.02 to 1.02", "(ViSpec tree 9 5 2; nodes",
        "3.22x over `generate` (the tree reaches it on none)",
        "1.8x over the fastest plain way (the tree reaches it on every task)",
    ):  # fmt: skip
        assert part in text


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


def test_the_picture_is_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        report.draw(RESULT, tmp_path / name)
    one, two = (tmp_path / name for name in ("one.svg", "two.svg"))
    assert one.read_bytes() == two.read_bytes()
    assert b"<svg" in one.read_bytes()
    assert report.digest(RESULT) in one.read_text()


def test_the_readme_says_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report.main(["--check"])
    # And it would be noticed if it did not.
    (tmp_path / "embedded-cpu.json").write_text(json.dumps(RESULT))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="pages or pictures"):
        report.main(["--check"])
