"""Rounds of the benchmark of speed agree as far as is said."""

from __future__ import annotations

from typing import Any

from rounds import agreement, last, stalls


def round_of(hour: str, seconds: float, name: str = "A", flags: str = "avx2") -> dict[str, Any]:
    """With two questions, that `generate` answers in two seconds each."""
    parts = [
        {
            "task": "vqa", "temperature": 0.0, "method": method, "tokens": [4, 6],
            "seconds": [s, s], "passes": 5, "identical": 2, "largest_gap": 0.0, "quality": {},
        }
        for method, s in (("generate", 2.0), ("vispec", seconds))
    ]  # fmt: skip
    found = {"begun": f"2026-01-{hour}:00:00Z", "ended": f"2026-01-{hour}:50:00Z", "parts": parts}
    return found | {"machine": {"processor": name, "flags": [flags]}}


def test_days_agree_as_far_as_they_do() -> None:
    # An hour behind midnight is the same day's work.
    rounds = [round_of("01T22", 1.0), round_of("02T00", 0.8), round_of("02T08", 0.9)]
    assert agreement(rounds[:2]) == ""
    # Speedups of 2 and 2.5, of both kinds, since `generate` is the fastest plain way; then 2.236.
    again = agreement([*rounds[:2], round_of("02T08", 2 / 5**0.5)])
    assert again.startswith(
        "The 2 speedups of ViSpec's rows of 7 hours later (1 round) differ by up to 0.0% from those"
        " before (2 rounds), by 0.0% in the median; "
    )
    # Logarithms that differ by 0.223 have a deviation of 0.158; twice that, times 1.225, is 0.386.
    assert "95 % of such differences lie within 47.2%, and 2 do. " in again
    for seconds, inside in ((0.61, 2), (0.60, 0)):
        text = agreement([*rounds[:2], round_of("02T08", seconds)])
        assert f"and {inside} do." in text
    # Whichever day has several rounds; and both, where they have.
    later = [round_of("02T08", 1.0), round_of("02T10", 0.8)]
    text = agreement([round_of("01T22", 2 / 5**0.5), *later])
    assert "95 % of such differences lie within 47.2%, and 2 do. " in text
    # Alike on the one day: half the variance, and 1 for 1.225.
    text = agreement([round_of("01T20", 0.9), round_of("01T22", 0.9), *later])
    assert "95 % of such differences lie within 25.0%, and 2 do. " in text
    # One round does not tell how much rounds differ.
    assert agreement([rounds[0], rounds[2]]).endswith(
        "differ by up to 11.1% from those before (1 round), by 11.1% in the median. "
    )


def test_processors_are_told_apart_by_instructions_too() -> None:
    # Virtual machines call several processors the same.
    for name, flags in (("Another", "avx2"), ("A", "avx512f")):
        one, another = round_of("01T08", 1.0), round_of("02T08", 0.8, name, flags)
        # Whatever the hours, other processors are not other days.
        between = (
            f"From A (avx2) to {name} ({flags}), speedups of ViSpec's rows change over `generate`"
            " by +25.0% to +25.0% and over the fastest plain way by +25.0% to +25.0%. "
        )
        assert agreement([one, another]) == between
        again = round_of("03T08", 0.8, name, flags)
        days = f"On {name} ({flags}), the 2 speedups of ViSpec's rows of 23 hours later (1 round)"
        text = agreement([one, another, again])
        assert text == (
            f"{days} differ by up to 0.0% from those before (1 round), by 0.0% in the median. "
            f"{between}"
        )


def test_the_last_round_is_held_to_what_was_said_before_it() -> None:
    before = round_of("01T08", 1.0), round_of("01T10", 0.8)
    assert last(before[:1]) == ""
    for seconds, within in ((0.9, 2), (1.0, 2), (1.1, 0), (0.7, 0)):
        said = last([*before, round_of("02T08", seconds)])
        assert said.startswith(
            f"Of the last round's 2 speedups of ViSpec's rows {within} lie in the "
        )


def test_answers_that_a_busy_machine_held_up_are_told() -> None:
    rounds = [round_of(f"01T0{i}", 0.5) for i in (1, 3, 5)]
    for seconds, told in ((4.9, False), (5.1, True)):
        rounds[1]["parts"][1]["seconds"] = [0.5, seconds]
        said = stalls(rounds)
        assert bool(said) == told
    assert said == (
        "1 answer took over 10 times as long in one round as in the median: 5.1 s for 0.5 of "
        "'scene, a question' at temperature 0 by ViSpec tree. "
    )
