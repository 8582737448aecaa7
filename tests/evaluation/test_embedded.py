"""What is said of a draft's acceptance is what its target was seen to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import talking
import tiny
from vispec.decoding.engine import Engine
from vispec.decoding.tree import TreeShape
from vispec.evaluation import baselines, embedded
from vispec.evaluation.items import Item
from vispec.training.distill import Question, distill

HERE = [Item("vqa", talking.picture(i), "what is it ?", "") for i in range(3)]
ELSEWHERE = [Item("read", talking.picture(i), "read it .", "") for i in range(3, 6)]


@pytest.fixture
def engine() -> Engine:
    target = talking.target(torch.float32, max_position_embeddings=128)
    return Engine(target, tiny.draft(torch.float32, queries=3), tree=TreeShape(6, 3, 2))


def test_a_draft_accepts_the_tokens_that_the_target_was_not_run_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [engine.generate(i.question, [i.image], max_new_tokens=12).token_ids for i in HERE]
    monkeypatch.setattr(embedded, "answers", lambda *_, **__: said)
    passes, verify = [], engine.target.verify
    monkeypatch.setattr(
        engine.target, "verify", lambda *a, **k: [passes.append(a), verify(*a, **k)][1]
    )
    monkeypatch.setattr(baselines, "bits_per_token", lambda *_: 0.5)
    (row,) = embedded.acceptance(engine, HERE, said, {})
    assert row["tokens"] == sum(map(len, said))
    assert row["draft"] == pytest.approx((row["tokens"] - 3) / len(passes))


def test_a_draft_is_compared_with_the_better_table_and_the_tree_that_suits_it(
    engine: Engine,
) -> None:
    """Both tasks say the same tokens in different orders, so a table of both guesses wrong."""
    one, other = [5, 6, 7, 8, 9, 10], [5, 7, 6, 9, 8, 10]
    asked, said = [*HERE, *ELSEWHERE], [one] * 3 + [other] * 3
    known = embedded.by_task(["vqa", "read", "read", "read"], [one] + [other] * 3)
    engine = Engine(engine.target, engine.draft, tree=TreeShape.chain(2))
    rows = embedded.acceptance(engine, asked, said, known)
    assert [row["task"] for row in rows] == ["vqa", "read"]
    for row in rows:
        # Five tokens behind the first in chains of two: 3 a pass at most, then 2.
        assert row["table"] == {"vqa": 1, "read": 3}[row["task"]]
        assert row["bigrams"] == pytest.approx(2.5)
        assert row["bigrams_any_tree"] == pytest.approx(5)
        better = max(row["bigrams"], row["prompt_lookup"])
        assert row["advantage"] == pytest.approx(row["draft"] / better)
        assert row["reached"] is (row["draft"] >= 1.5 * better)


def test_answers_of_a_training_are_sorted_by_task(engine: Engine, tmp_path: Path) -> None:
    keys = ["multimodal-scene-7-vqa", "multimodal-photo-0-a.jpg", "multimodal-scene-8-vqa"]
    asked = [Question(key, "what ?", [talking.picture(0)]) for key in keys]
    answers = distill(engine, asked, tmp_path, max_new_tokens=3, batch=2)
    assert embedded.learnt(tmp_path) == {
        "vqa": [answers[keys[0]].token_ids, answers[keys[2]].token_ids],
        "photo": [answers[keys[1]].token_ids],
    }
    with pytest.raises(SystemExit):
        embedded.main(["--answers", str(tmp_path / "none")])


@pytest.mark.slow
def test_the_command_reports_on_the_embedded_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quality.json"
    embedded.main(["--count", "2", "--table", "3", "--threads", "1", "--out", str(out)])
    report = json.loads(out.read_text())
    assert {row["task"] for row in report["acceptance"]} == {"vqa", "caption", "read"}
    assert all(row["draft"] >= 1 and row["bits_per_token"] > 0 for row in report["acceptance"])
    assert report["samples"]
    assert {m["items"] for m in report["quality"] if "words" not in m["name"]} == {2}
    shown = capsys.readouterr().out
    assert "What the target sees" in shown
    assert "bigrams" in shown
