"""The arithmetic of the benchmark, on answers whose speeds are known."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import embedded_cpu as bench
import methods as ways
import speeds
import talking
import tiny
from vispec.checkpoints import vispec as vispec_format
from vispec.decoding.tree import TreeShape
from vispec.evaluation.items import Item

ITEMS = [
    Item("vqa", Image.new("RGB", (8, 8)), "What colour is it?", "It is red."),
    Item("vqa", Image.new("RGB", (8, 8)), "What shape is it?", "It is a ring."),
]


def answering(seconds: float, text: str, passes: int = 0, verify_s: float = 0.0) -> Any:
    """A method that always takes so long and says so much."""
    stages = ("vision", "prefill", "read", "draft", "verify", "overhead")
    stats = {"target_passes": passes, "new_tokens": 7, "total_s": seconds * 0.6}
    stats |= {f"{stage}_s": seconds / 10 for stage in stages}
    stats["verify_s"] = verify_s or stats["verify_s"]
    # Two levels of every pass, of two nodes each beside the root.
    stats |= {"size": 5, "depth": 2, "accepted_by_depth": [passes, passes]}

    def method(item: Item, temperature: float, seed: int) -> Any:
        ids = list(range(7))
        return ways.Answer(seconds, ids, text, passes or 6, stats if passes else {})

    return method


def measure(methods: dict[str, Any], repeats: int, file: Path) -> list[list[dict[str, Any]]]:
    """The lines of every repeat."""
    return [
        bench.measure(methods, ITEMS, repeat, file, lambda item, ours, theirs: 0.25)
        for repeat in range(repeats)
    ]


def rows_of(repeats: list[list[dict[str, Any]]]) -> dict[tuple[float, str], dict[str, Any]]:
    rows = speeds.summarise([speeds.parts(lines, ITEMS) for lines in repeats])
    return {(row["temperature"], row["method"]): row for row in rows}


METHODS = {
    "generate": answering(1.0, "It is red."),
    "plain": answering(0.5, "It is red.", passes=6),
    "vispec": answering(0.25, "It is a ring.", passes=2),
}


def test_speeds_are_ratios_to_generate_and_to_the_fastest_plain_loop(tmp_path: Path) -> None:
    repeats = measure(METHODS, 3, tmp_path / "answers.jsonl")
    rows = rows_of(repeats)
    assert set(rows) == {(t, name) for t in (0.0, 1.0) for name in METHODS}
    row = rows[0.0, "vispec"]
    assert row["items"] == 2
    assert row["repeats"] == 3
    assert row["new_tokens"] == 3 * 14
    assert row["tokens_per_s"] == pytest.approx(28)
    assert row["speedup_vs_generate"] == pytest.approx(4)
    assert row["fastest_plain"] == "plain"
    assert row["speedup_vs_fastest_plain"] == pytest.approx(2)
    # The first token comes from the prefill.
    assert row["acceptance_length"] == pytest.approx(3)
    assert rows[0.0, "generate"]["acceptance_length"] == pytest.approx(1)
    assert row["identical"] == 6
    assert row["speedup_vs_generate_spread"] == pytest.approx([4, 4])
    assert row["speedup_vs_generate_interval"] == pytest.approx([4, 4])
    assert row["draft_ms_per_pass"] == pytest.approx(12.5)
    # What is not in the loop is before or behind it.
    assert row["encode_ms"] == pytest.approx(100)
    assert row["read_ms"] == pytest.approx(25)
    assert row["quality"]["scene questions right"] == 0.5


def test_what_is_attainable_is_what_the_models_take_beside_a_plain_loop_of_the_same_kind(
    tmp_path: Path,
) -> None:
    plain = answering(0.4, "It is red.", passes=6, verify_s=0.06)
    methods = METHODS | {"plain-compiled": plain}
    repeats = measure(methods, 1, tmp_path / "answers.jsonl")
    rows = rows_of(repeats)
    row = rows[0.0, "vispec"]
    assert row["same_mode"] == "plain-compiled"
    # A drafted level takes 6.25 ms, a pass 10 ms over one token and 12.5 over the tree. Passes of
    # one level make the six tokens behind the first by two, in 17.5 ms each, and passes of two
    # levels by three, in 25 ms. So two levels are the better: 50 ms, behind 75 of the prompt.
    assert row["speedup_vs_same_mode"] == pytest.approx(0.4 / 0.25)
    assert row["attainable_vs_same_mode"] == pytest.approx(0.4 / 0.125)
    assert row["share_of_attainable"] == pytest.approx(0.125 / 0.25)
    assert row["cycles_vs_same_mode"] == pytest.approx(0.14 / 0.075)
    assert "same_mode" not in rows[0.0, "plain"]


SHAPE = {
    "tokens": [9, 7], "passes": 5, "size": 9, "depth": 4, "accepted_by_depth": [5, 3, 1, 1],
    "draft_s": 0.08, "verify_s": 0.09, "vision_s": 0.0, "prefill_s": 0.3, "read_s": 0.1,
}  # fmt: skip
PLAIN = {"verify_s": 0.14, "passes": 14}


def test_the_measured_depth_takes_as_many_passes_as_it_took() -> None:
    # Of 14 tokens behind the first ones, ten were guessed and four more came of five passes.
    costly = PLAIN | {"verify_s": 0.5}
    deep = SHAPE | {"accepted_by_depth": [0, 0, 0, 10]}
    took = 5 * (0.08 / 5 + 0.09 / 5)
    assert speeds.attainable(deep, costly, [deep]) == pytest.approx(16 / (took + 0.4))


def test_a_shape_may_be_cut_and_another_may_be_better() -> None:
    # A level costs 4 ms, a pass over one token 10, and one over the whole tree 18.
    alone = speeds.attainable(SHAPE, PLAIN, [SHAPE])
    passes = {1: 15 / 2, 2: 15 / 2.6, 3: 15 / 2.8, 4: 15 / 3}
    costs = {depth: 0.010 + depth * (0.004 + 0.002) for depth in passes}
    best = min(passes[depth] * costs[depth] for depth in passes)
    assert best == pytest.approx(passes[1] * costs[1])
    assert alone == pytest.approx(16 / (best + 0.4))
    # Seven guesses of each of two passes, one node a level.
    chain = {"passes": 2, "size": 8, "depth": 7, "accepted_by_depth": [2] * 7}
    assert speeds.attainable(SHAPE, PLAIN, [SHAPE, chain]) == pytest.approx(
        16 / (2 * (0.010 + 7 * (0.004 + 0.001)) + 0.4)
    )
    # Nothing is attained by a draft that is always wrong.
    wrong = SHAPE | {"accepted_by_depth": [], "passes": 14}
    assert speeds.attainable(wrong, PLAIN, [wrong]) == pytest.approx(16 / (0.14 + 0.4))


def test_answers_that_differ_from_the_reference_are_counted(tmp_path: Path) -> None:
    def other(item: Item, temperature: float, seed: int) -> Any:
        return ways.Answer(0.1, [1, 2], "Red.", 1)

    repeats = measure(METHODS | {"eagle": other}, 1, tmp_path / "answers.jsonl")
    rows = rows_of(repeats)
    assert rows[0.0, "eagle"]["identical"] == 0
    assert rows[0.0, "eagle"]["largest_gap"] == 0.25
    assert rows[0.0, "vispec"]["largest_gap"] == 0


def test_sampled_text_is_compared_with_the_plain_loops_and_not_with_generates(
    tmp_path: Path,
) -> None:
    repeats = measure(METHODS, 1, tmp_path / "answers.jsonl")
    rows = rows_of(repeats)
    assert "identical" not in rows[1.0, "generate"]
    assert rows[1.0, "vispec"]["identical"] == 2


def test_a_slow_repeat_changes_no_median(tmp_path: Path) -> None:
    repeats = measure(METHODS, 3, tmp_path / "answers.jsonl")
    for line in repeats[1]:
        line["seconds"] *= 10
    rows = rows_of(repeats)
    assert rows[0.0, "vispec"]["tokens_per_s"] == pytest.approx(28)
    assert rows[0.0, "vispec"]["tokens_per_s_spread"] == pytest.approx([2.8, 28])
    assert rows[0.0, "vispec"]["speedup_vs_generate"] == pytest.approx(4)


def test_an_interval_holds_what_other_items_might_have_given() -> None:
    """Two kinds of items: one is answered four times as fast, the other as fast."""

    def part(seconds: list[float]) -> dict[str, Any]:
        return {"tokens": [10] * len(seconds), "seconds": seconds}

    theirs = part([1.0] * 100)
    low, high = speeds.interval([part([0.25, 1.0] * 50)], [theirs])
    assert 1.3 < low < 1.6 < high < 1.9
    assert speeds.interval([part([0.5] * 100)], [theirs]) == pytest.approx((2, 2))
    # Repeats are of the same items: they do not make it narrower.
    many = speeds.interval([part([0.25, 1.0] * 50)] * 9, [theirs] * 9)
    assert many == pytest.approx((low, high))
    # What they differ by is within it, whichever comes first.
    slow = [part([0.4, 1.6] * 50), part([0.25, 1.0] * 50)]
    found = speeds.interval(slow, [theirs] * 2)
    assert found == pytest.approx((low / 1.6, high))
    assert speeds.interval(slow[::-1], [theirs] * 2) == pytest.approx(found)


def test_sampled_answers_of_all_repeats_count(tmp_path: Path) -> None:
    repeats = measure(METHODS, 2, tmp_path / "answers.jsonl")
    for line in repeats[1]:
        if line["temperature"] and line["method"] == "vispec":
            line["token_ids"], line["text"] = [1, 2, 3], "No idea."
    row = rows_of(repeats)[1.0, "vispec"]
    assert row["new_tokens"] == 2 * 7 + 2 * 3
    assert row["quality"]["scene questions right"] == 0.25


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    whole = list(chain.from_iterable(measure(METHODS, 2, file)))
    kept = file.read_text().splitlines(keepends=True)
    # Three rounds, one that lacks a method, and a line that is cut.
    file.write_text("".join(kept[: len(METHODS) * 4 - 1]) + kept[-1][:20])
    again = list(chain.from_iterable(measure(METHODS, 2, file)))

    def places(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return sorted((x["repeat"], x["temperature"], x["item"], x["method"]) for x in lines)

    assert places(again) == places(whole)
    assert len(file.read_text().splitlines()) == len(whole) == len(kept)
    assert all(json.loads(line) for line in file.read_text().splitlines())


@pytest.mark.slow
def test_every_method_answers_and_the_result_says_what_it_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "MAX_NEW_TOKENS", 6)
    monkeypatch.setattr(ways, "TREES", (TreeShape(4, 3, 2),))
    monkeypatch.setattr(ways, "CHAINS", (TreeShape.chain(2),))
    target = talking.save(tmp_path / "target", max_position_embeddings=512)
    # Prompt lookup must not find an image behind what the prompt ends with.
    template = target / "chat_template.jinja"
    template.write_text(template.read_text().replace("'assistant:'", "'assistant.'"))
    for name, queries in (("vispec", 3), ("eagle3", None), ("eagle-text", None)):
        vispec_format.write(tiny.draft(torch.float32, queries=queries), tmp_path / "drafts" / name)
    out = tmp_path / "result.json"
    command = [
        "--target", str(target), "--drafts", str(tmp_path / "drafts"), "--items", "1",
        "--choosing", "1", "--tasks", "vqa", "--repeats", "1",
        "--work", str(tmp_path / "work"), "--out", str(out),
    ]  # fmt: skip
    bench.main(command)
    result = json.loads(out.read_text())
    rows = {(row["temperature"], row["method"]): row for row in result["rows"]}
    assert {name for _, name in rows} == {
        "generate", "generate-static", "generate-lookup", "plain", "plain-compiled",
        "vispec-uncompiled", "vispec-advised", "vispec-chain", "vispec",
        "eagle-text", "eagle-text-blind", "eagle3", "eagle3-chain",
    }  # fmt: skip
    for name in {name for _, name in rows}:
        assert rows[0.0, name]["identical"] == 1 or rows[0.0, name]["largest_gap"] < 1e-3
        assert rows[0.0, name]["acceptance_length"] >= 1
    for part in ("weights", "machine", "commit", "source", "trees", "timed", "dtype", "command"):
        assert result[part]
    assert rows[0.0, "vispec"]["threads"] == result["machine"]["threads"]
    assert set(result["weights"]) == {"target", "vispec", "eagle3", "eagle-text"}
    # Nothing is left to ask, and nothing of another run is taken for this one's.
    again = (tmp_path / "work" / "answers.jsonl").read_text()
    bench.main(command)
    assert (tmp_path / "work" / "answers.jsonl").read_text() == again
    assert json.loads(out.read_text()) == result
    # Another day, or another machine: a second repeat beside the first, with the same trees.
    bench.main([*command[:-6], "--repeats", "2", "--work", str(tmp_path / "new"), *command[-2:]])
    more = json.loads(out.read_text())
    assert more["trees"] == result["trees"]
    assert more["timed"] == result["timed"]
    begun, ended = ([repeat[key] for repeat in more["repeats"]] for key in ("begun", "ended"))
    assert begun == sorted(begun)
    assert begun[0] <= ended[0] <= begun[1]
    assert more["repeats"][0] == result["repeats"][0]
    assert all(row["repeats"] == 2 for row in more["rows"])
    with pytest.raises(SystemExit, match="another run"):
        bench.main([*command, "--threads", "1"])
    trees = tmp_path / "work" / "trees.json"
    trees.write_text(trees.read_text().replace('"depth": 3', '"depth": 2'))
    with pytest.raises(SystemExit, match="other trees"):
        bench.main(command)
    with pytest.raises(SystemExit, match="another command"):
        bench.main([*command, "--threads", "1", "--work", str(tmp_path / "other")])
