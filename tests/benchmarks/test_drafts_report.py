"""The report on drafts, from numbers that can be worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import drafts_report as report

KEYS = ["scene-1-vqa", "photo-0-a", "scene-2-vqa", "photo-1-b"]


def measured(passes: list[int], seconds: float, same: bool = True) -> dict[str, list[Any]]:
    """Answers of 11 tokens."""
    nothing = [0.0] * len(passes)
    return {
        "new_tokens": [11] * len(passes),
        "target_passes": passes,
        "drafted_tokens": [10 - p for p in passes],
        "vision_s": nothing,
        "prefill_s": nothing,
        "read_s": nothing,
        "draft_s": [seconds / 4] * len(passes),
        "verify_s": [seconds / 2] * len(passes),
        "overhead_s": [seconds / 4] * len(passes),
        "same_text": [same] * len(passes),
    }


def result(**ways: dict[str, list[Any]]) -> dict[str, Any]:
    tree = {"size": 8, "depth": 5, "width": 2}
    found = {name.replace("_", ", seed "): numbers for name, numbers in ways.items()}
    return {
        "questions": KEYS,
        "measured": found,
        "ways": {
            name: {
                "tree": tree,
                "parameters": 700_000,
                "adapter_parameters": 20_000,
                "bytes": 1_400_000,
            }
            for name in found
            if name != "plain"
        },
        "arms": {"query": {"group": "adapters"}, "none": {"group": "adapters"}},
        "logs": {
            "query, seed 0": {
                "text": [{"elapsed_s": 60.0, "heldout_acceptance_length": 1.5}],
                "multimodal": [{"elapsed_s": 60.0, "heldout_acceptance_length": 2.5}],
            }
        },
    }


STATED = result(
    plain=measured([10, 10, 10, 10], 2.0),
    query_0=measured([2, 4, 2, 4], 0.5),
    query_1=measured([2, 2, 2, 2], 0.5),
    none_0=measured([5, 5, 5, 5], 1.0, same=False),
)


def test_seeds_and_questions_are_pooled() -> None:
    found = report.Result(STATED)
    assert found.seeds("query") == 2
    assert found.value(report.acceptance, "query") == pytest.approx(80 / 20)
    assert found.value(report.acceptance, "query", "vqa") == pytest.approx(40 / 8)
    assert found.value(report.accepted, "none") == pytest.approx(1.0)
    assert found.value(report.seconds, "plain") == pytest.approx(2.0)
    assert report.speedup(found, "query")[0] == pytest.approx(4.0)
    assert report.per_pass(found, "none", "draft_s") == pytest.approx(50.0)


def test_an_interval_holds_what_is_uncertain_and_nothing_else() -> None:
    found = report.Result(STATED)
    value, low, high = found.ratio(report.acceptance, "query", "none")
    assert (low, value) == pytest.approx((10 / 3 / 2, 2.0))
    assert high == pytest.approx(2.5)
    # Questions of a task are alike here, so without the seeds there is nothing to be unsure of.
    assert found.ratio(report.acceptance, "none", "plain") == pytest.approx((2, 2, 2))
    assert report.change((1.25, 1.1, 1.3)) == "**+25.0 % (+10.0 to +30.0)**"
    assert report.change((1.25, 0.9, 1.3)) == "+25.0 % (-10.0 to +30.0)"


def test_questions_are_drawn_for_both_sides_at_once() -> None:
    """One way is always twice as good, though questions differ widely."""
    stated = result(
        query_0=measured([1, 2, 4, 5], 1.0),
        none_0=measured([2, 4, 8, 10], 1.0),
        plain=measured([10, 10, 10, 10], 1.0),
    )
    found = report.Result(stated)
    assert found.ratio(report.acceptance, "query", "none") == pytest.approx((2, 2, 2))


def test_what_was_made_of_the_first_seed_is_compared_with_it() -> None:
    stated = result(
        query_0=measured([2, 2, 2, 2], 1.0),
        query_1=measured([5, 5, 5, 5], 1.0),
        plain=measured([10, 10, 10, 10], 1.0),
    )
    stated["measured"]["query, int8"] = measured([4, 4, 4, 4], 1.0)
    found = report.Result(stated)
    assert found.ratio(report.acceptance, "query, int8", "query") == pytest.approx((0.5,) * 3)


def test_tables_have_a_row_for_every_way() -> None:
    table = report.adapters(report.Result(STATED)).splitlines()
    assert len(table) == 4
    assert table[2].startswith("| query (ViSpec) | 0.02 / 0.70 (1.4) | 2 | 3.33 | 5.00 | 4.00 |  |")
    assert "| **-50.0 % " in table[3]
    assert table[3].endswith("| 0/4 |")


def test_pictures_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    found = report.Result(STATED)
    for name in ("one.svg", "two.svg"):
        report.draw_ratios(found, ["query", "none"], tmp_path / name, "adapters")
        report.draw_curves(found, tmp_path / f"curves-{name}")
    for kind in ("", "curves-"):
        one, two = (tmp_path / f"{kind}{name}.svg" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert "none (EAGLE)" in one.read_text() or kind
