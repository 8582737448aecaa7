"""The card of a target says what its training and evaluation found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vispec
from vispec.training.recipes import target_card

MODEL = Path(vispec.__file__).parent / "models" / "target"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for phase, count in (("joined", 40), ("grown", 3)):
        (tmp_path / phase).mkdir()
        lines = [
            {"step": 10 * i, "elapsed_s": 60.0 * i, "heldout_vqa": 1 / i, "heldout_read": 2 / i}
            for i in range(1, count + 1)
        ]
        lines.insert(0, {"step": 1, "elapsed_s": 1.0, "loss": 3.0})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / phase / "log.jsonl").write_text(text)
    return tmp_path


def test_the_card_has_the_numbers(work: Path) -> None:
    report = {
        "quality": [{"name": "scene questions right", "true": 0.7, "swapped": 0.2,
                     "items": 9, "least": 0.8, "gain": 0.25, "lower_is_better": False,
                     "reached": False}],
        "samples": [
            {"task": "read", "question": "Read.", "true": "A", "said": "B"},
            {"task": "photo", "question": "Look.", "said": "C"},
        ],
    }  # fmt: skip
    text = target_card.card(MODEL, work, report, fonts=21, seed=5, note="Resumed once.")
    assert "20 M parameters" in text.replace("19.6", "20").replace("19.7", "20")
    assert (
        "| scene questions right | 9 | 0.700 | 0.200 "
        "| at least 0.80, 0.25 better than with another: not reached |"
    ) in text
    assert "in 21 fonts" in text
    assert "* *read* Read.\n  * true: A\n  * said: B\n* *photo* Look.\n  * said: C" in text
    assert "Seed 5; 16 conversations a step; peak learning rates 0.0015 (tower)," in text
    assert "(further). Resumed once." in text
    assert "* joined: 400 steps in 40.0 minutes" in text
    assert "research use only" in text.lower()


def test_further_training_is_called_as_it_is_asked(work: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "further"
    other.mkdir(parents=True)
    line = {"step": 5, "elapsed_s": 120.0, "heldout_vqa": 0.25}
    (other / "log.jsonl").write_text(json.dumps(line) + "\n")
    report = {"quality": [], "samples": []}
    text = target_card.card(MODEL, work, report, 21, 5, further={"on a GPU": other.parent})
    assert "* grown: 30 steps in 3.0 minutes\n* on a GPU: 5 steps in 2.0 minutes\n" in text
    assert "| on a GPU | 5 | 2 | 0.250 | – | – | – |" in text


def test_the_curve_keeps_the_last_point_of_every_phase(work: Path) -> None:
    rows = target_card.curve(work, {}, points=5).splitlines()[2:]
    joined = [row for row in rows if "joined" in row]
    assert 3 <= len(joined) <= 5
    assert joined[-1] == "| joined | 400 | 40 | 0.025 | – | 0.050 | – |"
    assert list(dict.fromkeys(row.split()[1] for row in rows)) == ["joined", "grown"]
    assert rows[-1].startswith("| grown | 30 |")
