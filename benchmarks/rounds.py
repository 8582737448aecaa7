"""How rounds of `embedded_cpu.py` differ: on other days, on other processors, and by accident."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import exp, log, sqrt
from statistics import mean, median, variance
from typing import Any

from speed_words import METHODS, OURS, OVER, TASKS, counted
from speeds import summarise

STALL = 10
"""Times as long as in other rounds, which no text makes of an answer."""
APART_H = 6.0
"""Hours between rounds that say something of each other."""


def processor_of(repeat: Mapping[str, Any]) -> str:
    """What a round ran on: a name that virtual machines give to several, and its instructions."""
    machine = repeat["machine"]
    return f"{machine['processor']} ({', '.join(machine['flags'])})"


def agreement(repeats: Sequence[Mapping[str, Any]]) -> str:
    """How far speedups of rounds are from those of a day before, and of other processors.

    Empty if all rounds are of one processor and day.
    """
    rounds: dict[str, list[Mapping[str, Any]]] = {}
    for repeat in repeats:
        rounds.setdefault(processor_of(repeat), []).append(repeat)
    days = [
        _days(some, f"On {name}, the" if len(rounds) > 1 else "The")
        for name, some in rounds.items()
    ]
    return "".join([*days, _processors(rounds)])


def last(repeats: Sequence[Mapping[str, Any]]) -> str:
    """How much of the last round is as the tables said before it; empty of one round."""
    if len(repeats) < 2:
        return ""
    *before, newest = (one["parts"] for one in repeats)
    brackets, found = _of_rows(before, "_interval"), _of_rows([newest], "")
    within = sum(low <= found[key] <= high for key, (low, high) in brackets.items())
    return (
        f"Of the last round's {len(found)} speedups of ViSpec's rows {within} lie in the brackets "
        "that the rounds before it give. "
    )


def stalls(repeats: Sequence[Mapping[str, Any]]) -> str:
    """Answers that the machine was busy with something else for; empty where there are none."""
    rounds: dict[tuple[str, float, str], list[Sequence[float]]] = {}
    for one in repeats:
        for part in one["parts"]:
            key = part["task"], part["temperature"], part["method"]
            rounds.setdefault(key, []).append(part["seconds"])
    told = [
        f"{max(times):.1f} s for {median(times):.1f} of '{TASKS[task]}' at temperature {heat:.0f} "
        f"by {METHODS[method]}"
        for (task, heat, method), seconds in rounds.items()
        for times in zip(*seconds, strict=True)
        if max(times) > STALL * median(times)
    ]
    if not told:
        return ""
    return (
        f"{counted(len(told), 'answer')} took over {STALL} times as long in one round as in the "
        f"median: {'; '.join(told)}. "
    )


def _processors(rounds: Mapping[str, list[Mapping[str, Any]]]) -> str:
    """How far speedups of other processors are from those of the first."""
    means = {
        name: _mean([_speedups(one["parts"]) for one in some]) for name, some in rounds.items()
    }
    (first, before), *others = means.items()
    text = ""
    for name, after in others:
        moved = {
            over: [exp(after[key] - before[key]) - 1 for key in before if key[-1] == over]
            for over in OVER
        }
        said = " and over ".join(
            f"{words} by {min(moved[over]):+.1%} to {max(moved[over]):+.1%}"
            for over, words in OVER.items()
        )
        text += f"From {first} to {name}, speedups of ViSpec's rows change over {said}. "
    return text


def _days(repeats: Sequence[Mapping[str, Any]], the: str) -> str:
    """The same of days of one processor; empty if there is one."""
    begun, ended = ([datetime.fromisoformat(r[key]) for r in repeats] for key in ("begun", "ended"))
    gaps = [(b - a).total_seconds() / 3600 for a, b in zip(ended, begun[1:], strict=False)]
    split = next((i for i, gap in enumerate(gaps, 1) if gap >= APART_H), None)
    if split is None:
        return ""
    before, after = (
        [_speedups(one["parts"]) for one in some] for some in (repeats[:split], repeats[split:])
    )
    means = _mean(before), _mean(after)
    moved = [abs(means[1][key] - means[0][key]) for key in means[0]]
    said = (
        f"{the} {len(moved)} speedups of ViSpec's rows of {gaps[split - 1]:.0f} hours "
        f"later ({counted(len(after), 'round')}) differ by up to {exp(max(moved)) - 1:.1%}"
        f" from those before ({counted(len(before), 'round')}), by {exp(median(moved)) - 1:.1%} "
        "in the median"
    )
    several = [some for some in (before, after) if len(some) > 1]
    if not several:
        return said + ". "
    # Of every speedup rounds of a day say how much it varies, of all together they say it well.
    squares = mean(
        sum((len(some) - 1) * variance([one[key] for one in some]) for some in several)
        for key in before[0]
    )
    varies = sqrt(squares / sum(len(some) - 1 for some in several))
    most = 2 * varies * sqrt(1 / len(before) + 1 / len(after))
    inside = sum(change <= most for change in moved)
    return (
        f"{said}; by how rounds of a day differ, 95 % of such differences lie within "
        f"{exp(most) - 1:.1%}, and {inside} do. "
    )


def _of_rows(rounds: Sequence[Sequence[Any]], number: str) -> dict[tuple[Any, ...], Any]:
    """A number of every speedup of ViSpec's rows, by how it ends."""
    return {
        (row["task"], row["temperature"], row["method"], over): row[f"speedup_vs_{over}{number}"]
        for row in summarise(rounds)
        if row["method"] in OURS
        for over in OVER
    }


def _speedups(parts: Sequence[Any]) -> dict[tuple[Any, ...], float]:
    """Logarithms of a round's speedups of ViSpec's rows."""
    return {key: log(value) for key, value in _of_rows([parts], "").items()}


def _mean(rounds: Sequence[Mapping[tuple[Any, ...], float]]) -> dict[tuple[Any, ...], float]:
    return {key: mean(one[key] for one in rounds) for key in rounds[0]}
