"""Scores are of the right items, and goals are judged in the right direction."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vispec.evaluation.items import held_out, word_items
from vispec.evaluation.quality import Measure, facts, score


def test_true_answers_score_fully() -> None:
    items = [*held_out(None, 5), *word_items("heldout", 2)]
    scores = score(items, [item.answer for item in items])
    assert scores.pop("character error rate, all text") == 0
    assert scores.pop("character error rate, words") == 0
    assert all(value == 1 for value in scores.values())
    assert {"scene questions right", "facts of a description right"} <= scores.keys()


def test_answers_to_other_items_score_less() -> None:
    items = held_out(None, 6)
    answers = [item.answer for item in items]
    wrong = [answers[(i // 6) * 6 + (i + 1) % 6] for i in range(len(answers))]
    right, other = score(items, answers), score(items, wrong)
    assert other["characters right, all text"] < right["characters right, all text"] - 0.4
    assert other["facts of a description right"] < 0.5


def test_words_and_all_text_are_scored_apart() -> None:
    read = [item for item in held_out(None, 1) if item.task == "read"]
    words = word_items("heldout", 1)
    scores = score([*read, *words], [read[0].answer, "nothing"])
    assert scores["character error rate, all text"] == 0
    assert scores["character error rate, words"] > 0.5


def test_photographs_are_scored_by_their_subjects() -> None:
    item = replace(held_out(None, 1)[0], task="photo", references=("A dog runs.", "Two dogs."))
    scores = score([item, item], ["A brown dog.", "A man."])
    assert scores == {"photograph's subject named": 0.5, "distinct captions": 1.0}


def test_a_description_claims_what_its_sentences_tell() -> None:
    told = facts("I can see two shapes. There is a small red star in the upper left. It is nice.")
    assert told == {("left", "red", "small", "star", "upper")}


@pytest.mark.parametrize(
    ("measure", "reached"),
    [
        (Measure("a", 0.7, 0.5, least=0.6), True),
        (Measure("a", 0.5, 0.1, least=0.6), False),
        (Measure("a", 0.7, 0.5, gain=0.25), False),
        (Measure("a", 0.7, 0.4, gain=0.25), True),
        (Measure("a", 0.1, 0.9, least=0.15, lower_is_better=True), True),
        (Measure("a", 0.2, 0.9, least=0.15, lower_is_better=True), False),
        (Measure("a", 0.2, 0.9), None),
    ],
)
def test_goals(measure: Measure, reached: bool | None) -> None:
    assert measure.reached is reached
