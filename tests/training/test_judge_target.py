"""Judging counts what a reader would count."""

from __future__ import annotations

import pytest
from PIL import Image

from vispec.training.recipes.judge_target import Question, distance, score


@pytest.mark.parametrize(
    ("one", "two", "edits"), [("", "ab", 2), ("kitten", "sitting", 3), ("QX7", "QX7", 0)]
)
def test_edit_distance(one: str, two: str, edits: int) -> None:
    assert distance(one, two) == distance(two, one) == edits


def test_a_misread_character_costs_its_share_of_the_text() -> None:
    def question(task: str, answer: str) -> Question:
        return Question(Image.new("RGB", (2, 2)), "?", answer, task)

    asked = [
        question("vqa", "It is red."),
        question("caption", "A red star."),
        question("read", 'It says "ABCD".'),
    ]
    scores = score(asked, ["It is red.", "A blue star.", 'The text says "ABXD".'])
    assert scores["vqa_exact"] == 1.0
    assert scores["caption_word_overlap"] == pytest.approx(2 / 3)
    assert scores["read_character_accuracy"] == pytest.approx(3 / 4)
    assert scores["read_exact"] == 0.0
