"""The report on drafts, from numbers that can be worked out by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import drafts_report as report
from ways import Result, acceptance, accepted, over, root, seconds

KEYS = ["scene-1-vqa", "photo-0-a", "scene-2-vqa", "photo-1-b"]


def measured(passes: list[Any], seconds: float, same: bool = True) -> dict[str, list[Any]]:
    """Answers of 11 tokens."""
    nothing = [0.0] * len(passes)
    return {
        "new_tokens": [11] * len(passes),
        "target_passes": passes,
        "accepted_tokens": [10 - p for p in passes],
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
            name: {
                "text": [{"step": 7, "elapsed_s": 60.0, "heldout_acceptance_length": 1.5}],
                "multimodal": [{"step": 9, "elapsed_s": 60.0, "heldout_acceptance_length": 2.5}],
            }
            for name in found
            if "seed" in name
        },
        "trained_at": {name: "cba" for name in found if "seed" in name},
    }


STATED = result(
    plain=measured([10, 10, 10, 10], 2.0),
    query_0=measured([2, 4, 2, 4], 0.5),
    query_1=measured([2, 2, 2, 2], 0.5),
    none_0=measured([5, 5, 5, 5], 1.0, same=False),
)


def test_seeds_and_questions_are_pooled() -> None:
    found = Result(STATED)
    assert found.seeds("query") == 2
    assert found.value(acceptance, "query") == pytest.approx(80 / 20)
    assert found.value(acceptance, "query", "vqa") == pytest.approx(40 / 8)
    assert found.value(accepted, "none") == pytest.approx(1.0)
    assert found.value(seconds, "plain") == pytest.approx(2.0)
    assert report.speedup(found, "query")[0] == pytest.approx(4.0)
    assert report.per_pass(found, "none", "draft_s") == pytest.approx(50.0)


def test_an_interval_holds_what_is_uncertain_and_nothing_else() -> None:
    found = Result(STATED)
    # Seeds accept 10 / 3 and 5 tokens a pass.
    logs = [math.log(10 / 3), math.log(5)]
    spread = ((logs[1] - logs[0]) ** 2 / 2) ** 0.5
    assert found.spread(acceptance) == (pytest.approx(spread), 1)
    value, low, high = found.ratio(acceptance, "query", "none")
    assert value == pytest.approx(2.0)
    # Questions of a task are alike here, and one degree of freedom says nearly nothing.
    reach = spread * 12.7 * (1 / 2 + 1) ** 0.5
    assert math.log(high / 2) == pytest.approx(reach, rel=0.3)
    assert math.log(low / 2) == pytest.approx(-reach, rel=0.3)
    # Plain decoding has no seed: what is unsure is the other side's alone.
    _, low, high = found.ratio(acceptance, "none", "plain")
    assert math.log(high / 2) == pytest.approx(spread * 12.7, rel=0.3)
    assert report.change((1.25, 1.1, 1.3)) == "**+25.0 % (+10.0 to +30.0)**"
    assert report.change((1.25, 0.9, 1.3)) == "+25.0 % (-10.0 to +30.0)"


def test_arms_that_differ_by_their_seeds_alone_are_hardly_ever_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As often as 95 % intervals allow: 1 time in 20, for arms of one seed too."""
    monkeypatch.setattr("ways.DRAWS", 300)
    generator = np.random.default_rng(3)
    bold = 0
    for _ in range(40):
        made = {"plain": measured([10] * 8, 1.0)}
        for name in ("query_0", "query_1", "query_2", "b_0", "b_1", "b_2", "c_0", "c_1", "c_2"):
            made[name] = measured([1000 * math.exp(generator.normal(0, 0.015))] * 8, 1.0)
        made["none_0"] = measured([1000 * math.exp(generator.normal(0, 0.015))] * 8, 1.0)
        found = Result(result(**made) | {"questions": KEYS * 2})
        bold += "**" in report.change(found.ratio(acceptance, "none", "query"))
    assert bold <= 6


def unlike() -> Result:
    """One adapter is twice as good at questions, others at photographs; one of these is faster."""
    stated = result(
        query_0=measured([2, 4, 2, 4], 1.0),
        query_1=measured([2, 4, 2, 4], 1.0),
        none_0=measured([4, 2, 4, 2], 0.5),
        none_1=measured([4, 2, 4, 2], 0.5),
        hidden_0=measured([4, 2, 4, 2], 1.0),
    )
    stated["arms"]["hidden"] = {"group": "adapters"}
    return Result(stated)


def test_a_task_has_an_order_of_its_own() -> None:
    header, _, *lines = report.by_task(unlike()).splitlines()
    assert header == "| tokens a pass, against query | photograph | question | all |"
    better, worse = "**+100.0 % (+100.0 to +100.0)**", "**-50.0 % (-50.0 to -50.0)**"
    told = f"{better} | {worse} | +0.0 % (+0.0 to +0.0) |"
    assert lines == [f"| none (EAGLE) | {told}", f"| hidden (HiViS) | {told}"]


def test_time_is_told_of_what_has_several_seeds() -> None:
    header, _, *lines = report.seconds_by_task(unlike()).splitlines()
    assert header == "| seconds an answer, against query | photograph | question | all |"
    assert lines == [f"| none (EAGLE) | {' | '.join(['**-50.0 % (-50.0 to -50.0)**'] * 3)} |"]


def test_a_draft_that_accepts_nothing_is_no_division_by_zero() -> None:
    assert over(2.0, 0.0) == math.inf
    assert over(2.0, 4.0) == 0.5


def test_questions_are_drawn_for_both_sides_at_once() -> None:
    """One way is always twice as good, though questions differ widely."""
    stated = result(
        query_0=measured([1, 2, 4, 5], 1.0),
        none_0=measured([2, 4, 8, 10], 1.0),
        plain=measured([10, 10, 10, 10], 1.0),
    )
    found = Result(stated)
    assert found.ratio(acceptance, "query", "none") == pytest.approx((2, 2, 2))


def test_what_was_made_of_the_first_seed_is_compared_with_it() -> None:
    stated = result(
        query_0=measured([2, 2, 2, 2], 1.0),
        query_1=measured([5, 5, 5, 5], 1.0),
        plain=measured([10, 10, 10, 10], 1.0),
    )
    stated["measured"]["query, int8"] = measured([4, 4, 4, 4], 1.0)
    found = Result(stated)
    assert found.ratio(acceptance, "query, int8", "query") == pytest.approx((0.5,) * 3)


def test_ways_are_made_of_what_their_name_begins_with_only_where_they_are() -> None:
    assert root("query and lookup, own tree") == root("query, rank 48") == "query"
    assert root("text alone, no image tokens") == "text alone"
    assert root("lookup, own tree") == "lookup"
    # A selector has an adapter that another run trained.
    for arm in ("none, as many steps", "small model, blind", "the paper's losses", "selector"):
        assert root(arm) == arm


def test_arms_of_like_names_have_seeds_of_their_own() -> None:
    stated = result(
        plain=measured([10] * 4, 1.0),
        query_0=measured([4] * 4, 1.0),
        query_1=measured([5] * 4, 1.0),
        none_0=measured([4] * 4, 1.0),
    )
    stated["measured"]["none, as many steps, seed 0"] = measured([4] * 4, 1.0)
    stated["measured"]["none, own tree"] = measured([4] * 4, 1.0)
    found = Result(stated)
    value, low, high = found.ratio(acceptance, "none, as many steps", "none")
    assert value == 1.0
    assert low < 0.9 < 1.1 < high
    assert found.ratio(acceptance, "none, own tree", "none") == (1.0, 1.0, 1.0)


def test_steps_are_those_of_all_seeds() -> None:
    stated = result(query_0=measured([4] * 4, 1.0), query_1=measured([5] * 4, 1.0))
    assert Result(stated).steps("query") == "16"
    stated["logs"]["query, seed 1"]["multimodal"][-1]["step"] = 12
    assert Result(stated).steps("query") == "16 to 19"


def test_a_ratio_to_next_to_nothing_is_told_without_an_interval() -> None:
    assert report.times((2.0, 1.5, 2.5)) == "2.00x (1.50 to 2.50)"
    assert report.times((math.inf, math.inf, math.nan)) == "over 100x"
    assert report.times((2754.1, 710.6, math.nan)) == "over 100x"
    assert report.times((60.0, 20.7, math.inf)) == "over 20x"


def test_seeds_of_a_task_differ_more_than_those_of_all() -> None:
    """Intervals of a task are by its own spread."""
    stated = result(
        plain=measured([10] * 4, 1.0),
        query_0=measured([4, 5, 4, 5], 1.0),
        query_1=measured([5, 4, 5, 4], 1.0),
    )
    found = Result(stated)
    assert found.spread(acceptance)[0] == pytest.approx(0)
    alone = math.log(5 / 4) / 2**0.5
    assert found.spread(acceptance, "vqa") == (pytest.approx(alone), 1)
    assert found.ratio(acceptance, "query", "plain")[1:] == pytest.approx((20 / 9,) * 2)
    low, high = found.ratio(acceptance, "query", "plain", "vqa")[1:]
    assert math.log(high / low) == pytest.approx(2 * alone * 12.7 / 2**0.5, rel=0.3)


def test_a_seed_that_accepts_nothing_of_a_task_spoils_no_interval() -> None:
    stated = result(
        plain=measured([10] * 4, 1.0),
        query_0=measured([4, 5, 4, 5], 1.0),
        query_1=measured([5, 4, 5, 4], 1.0),
        none_0=measured([10] * 4, 1.0),
        none_1=measured([10] * 4, 1.0),
    )
    found = Result(stated)
    deviation, freedom = found.spread(accepted, "vqa")
    assert freedom == 1
    assert math.isfinite(deviation)


def test_forms_stand_beside_the_seed_that_they_are_made_of() -> None:
    stated = result(
        plain=measured([10] * 4, 1.0),
        query_0=measured([2] * 4, 1.0),
        query_1=measured([5] * 4, 1.0),
    )
    stated["measured"]["query, int8"] = measured([4] * 4, 1.0)
    stated["ways"]["query, int8"] = stated["ways"]["query, seed 0"]
    first, second = report.forms(Result(stated)).splitlines()[2:]
    assert "| 1 | 16 | 5.00 | 5.00 | 5.00 |" in first
    assert "| 2.50 | **-50.0 % (-50.0 to -50.0)** |" in second


def test_arms_at_other_rates_stand_in_a_row() -> None:
    names = ("none_0", "none, half the rate_0", "none, twice the rate_0")
    stated = result(**{name: measured([4] * 4, 1.0) for name in names})
    for label, length in zip(stated["logs"], (2.5, 2.25, 2.75), strict=True):
        stated["logs"][label]["multimodal"][-1]["heldout_acceptance_length"] = length
    (row,) = report.rates(Result(stated)).splitlines()[2:]
    assert row == "| none (EAGLE) | 2.25 | 2.50 | 2.75 |"


def test_tables_have_a_row_for_every_way() -> None:
    table = report.adapters(Result(STATED)).splitlines()
    assert len(table) == 4
    assert table[2].startswith(
        "| query (ViSpec) | 0.02 / 0.70 (1.4) | 2 | 16 | 3.33 | 5.00 | 4.00 |  |"
    )
    assert "| -50.0 % (" in table[3]
    assert table[3].endswith("| 0/4 |")


def test_pictures_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    found = Result(STATED)
    for name in ("one.svg", "two.svg"):
        report.draw_ratios(found, ["query", "none"], tmp_path / name, "adapters")
        report.draw_curves(found, tmp_path / f"curves-{name}")
    for kind in ("", "curves-"):
        one, two = (tmp_path / f"{kind}{name}.svg" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert "none (EAGLE)" in one.read_text() or kind


def test_a_shared_adapter_is_judged_by_how_seeds_of_others_differ() -> None:
    made = {"plain": [10] * 4, "own": [4] * 4, "shared": [5] * 4}
    facts = {
        "sizes": {kind: {"adapter_parameters": 3_000_000} for kind in ("own", "shared")},
        "core": 1_000_000,
        "measured": {name: measured(passes, 1.0) for name, passes in made.items()},
    }
    stated = {"questions": KEYS, "targets": {"embedded": facts}}
    table = report.shared(stated, Result(STATED)).splitlines()
    # One degree of freedom of the others: nothing is claimed.
    assert "| 3.00 | 0.00 | 2.50 | -20.0 % (" in table[2]
    assert "| 3.00 | 1.00 | 2.00 |  |" in table[3]


def test_every_section_of_the_page_is_written(tmp_path: Path) -> None:
    """From files as the benchmarks write them, of all that they measure."""
    names = ("text alone_0", "query_0", "query_1", "none_0", "eagle3_0", "fused_0", "hidden_0")
    names += (f"{report.ALONE}_0", "pooling_0", "linear_0", "mlp of 2_0", "none, half the rate_0")
    stated = result(
        plain=measured([10] * 4, 2.0), **{name: measured([4, 5, 4, 5], 1.0) for name in names}
    )
    more = (
        "query, own tree",
        "none, own tree",
        "lookup",
        "selector",
        "query, int8",
        "query, rank 48",
    )
    made = ("query and lookup", "query, chain", "the embedded draft", report.BLIND)
    for name in (*more, *made):
        stated["measured"][name] = measured([6] * 4, 1.0)
        stated["ways"][name] = stated["ways"]["query, seed 0"]
    stated["choices"] = {"elastic": {"vqa": {"pooling": 3, "hidden": 1}, "caption": {"hidden": 0}}}
    stated["measured"]["text alone, seed 0"] = measured([10, 10, 10, 10], 1.0)  # nothing accepted
    groups = {"text alone": "kinds", "eagle3": "kinds", "fused": "training", "hidden": "adapters"}
    groups[report.ALONE] = "training"
    groups |= dict.fromkeys(("pooling", "linear", "mlp of 2", "none, half the rate"), "rates")
    stated["arms"] |= {name: {"group": group} for name, group in groups.items()}
    machine = {"threads": 2, "processor": "x", "torch": "2", "transformers": "5"}
    facts = {"machine": machine, "date": "a day", "command": "python x", "commit": "abc"}
    stated |= {"minutes": 15.0, **facts}
    shared = {
        "sizes": {kind: {"adapter_parameters": 3} for kind in ("own", "shared")},
        "core": 1,
        "measured": {name: measured([5] * 4, 1.0) for name in ("plain", "own", "shared")},
    }
    run = {"tokens_per_s": 5.0, "positions_per_s": 9.0, "peak_mb": 300.0}
    adapter = {"adapter": "query", "parameters": 9, "tokens": 1, "global": True, "ms": 1.0}
    costs = {
        "runs": {"online": [run], "int8": [run]},
        "kept": {"int8": {"bytes": 200.0, "seconds": 45.2}},
        "answers": 384,
        "adapters": [{**adapter, "size": size} for size in ("embedded", "7B")],
    }
    lines = [
        {"elapsed_s": s, "share": s / 121, "heldout_acceptance_length": 2.5} for s in (60, 121)
    ]
    adapted = {
        "before": {"acceptance_length": 2.25},
        "logs": {
            "begun with the former draft": [*lines, {"elapsed_s": 122}],
            "from nothing": lines[1:],
        },
    }
    files = {
        "adapted": adapted,
        "drafts": stated,
        "shared": {"questions": KEYS, "targets": {"embedded": shared}},
        "training-costs": costs,
    }
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    found = report.sections(tmp_path)
    parts = ("conditions", "adapters", "mappings", "training", "kinds", "own-trees", "forms")
    parts += ("chosen", "rates", "aims", "shared", "adapted", "by-task")
    parts += ("seconds-by-task",)
    marks = {f"drafts-{part}" for part in parts}
    assert set(found) == marks | {"training-costs", "adapter-costs"}
    assert all("nan" not in text and len(text) > 40 for text in found.values())
    late = report.sections(tmp_path, lambda stated: f"\n\n*late, {len(stated)}*")
    assert {mark for mark, text in late.items() if "*late, " not in text} == {"adapter-costs"}
    assert "| selector |" in found["drafts-chosen"]
    assert "elastic (SpecVLM) takes: question: pooling 75%, hidden 25%." in found["drafts-chosen"]
    assert "| linear | " in found["drafts-mappings"]
    assert "+0.0 %" in found["drafts-own-trees"].splitlines()[3]
    rows = [row.strip("| ") for row in found["drafts-adapted"].splitlines()[2:]]
    assert rows == ["0 | 2.25", "1 | 2.50", "2 | 2.50 | 2.50"]
    vispec, none, hidden, blind, raw = found["drafts-aims"].splitlines()[2:7]
    more = "1.00 | 1.50 | 1.22 | over 100x | 1.83x (1.83 to 1.83)"
    assert vispec == f"| query (ViSpec) | {more} | 1.00x (1.00 to 1.00) |"
    assert none == f"| none (EAGLE) | {more} |  |"
    assert hidden == f"| hidden (HiViS) | {more} | 1.00x (1.00 to 1.00) |"
    assert blind.startswith("| text alone, no image tokens (text-only) | 0.67 | 0.67 | 0.67 |")
    assert raw.startswith("| text alone | 0.00 | 0.00 | 0.00 |  | 0.00x")
    assert "75.0% (photograph), 75.0% (question)" in found["drafts-aims"]
    assert "no image token reaches: 1.50x (1.50 to 1.50) (photograph)" in found["drafts-aims"]
    assert "resampler alone" not in found["drafts-training"]
    assert "| 200 | 45 |" in found["training-costs"]
    assert "trained at `cba`" in found["drafts-conditions"]
    assert "arms took 7 to 7 steps" in found["drafts-conditions"]
