"""Ways of drafting: what was measured of each, and how sure it is that one is another's better.

Numbers of several seeds are pooled. An interval holds 95 % of what draws of as many questions of
every task give, questions being drawn for both sides of a comparison at once; and, where the sides
were trained apart, of what other seeds would give, by how much seeds of an arm differ from each
other, taken over all arms that have several.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from vispec.training.recipes.embedded_questions import task_of

DRAWS = 2000
MADE = re.compile(r", (own tree|chain|int8|rank \d+|no image tokens)$| and lookup$")
"""How ways are called that are made of the first seed of another."""
UNTRAINED = ("plain", "lookup")
"""Ways that have no seed."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way of drafting, what was measured of it per seed and question: `[seeds, questions]`."""

    numbers: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.numbers[name]

    @cached_property
    def total_s(self) -> np.ndarray:
        times = [value for name, value in self.numbers.items() if name.endswith("_s")]
        found: np.ndarray = np.sum(times, 0)
        return found


Measure = Callable[[Way, np.ndarray, np.ndarray], float]
"""A number of a way, of some of its seeds and some questions."""


def acceptance(way: Way, seeds: np.ndarray, places: np.ndarray) -> float:
    """Tokens a pass, the target's own among them."""
    pick = np.ix_(seeds, places)
    return float((way["new_tokens"][pick] - 1).sum() / way["target_passes"][pick].sum())


def accepted(way: Way, seeds: np.ndarray, places: np.ndarray) -> float:
    """Draft tokens a pass."""
    pick = np.ix_(seeds, places)
    return float(way["accepted_tokens"][pick].sum() / way["target_passes"][pick].sum())


def seconds(way: Way, seeds: np.ndarray, places: np.ndarray) -> float:
    """Seconds an answer."""
    return float(way.total_s[np.ix_(seeds, places)].mean())


class Result:
    """What was measured, by way; the seeds of an arm are one way.

    Args:
        like: whose seeds differ as these would, where there is one seed of each.
    """

    def __init__(self, stated: Mapping[str, Any], like: Result | None = None) -> None:
        self.stated = stated
        self.tasks = np.array([task_of(key) for key in stated["questions"]])
        seeds: dict[str, list[Mapping[str, Any]]] = {}
        for label, numbers in stated["measured"].items():
            seeds.setdefault(unseeded(label), []).append(numbers)
        self.ways = {
            name: Way({key: np.array([one[key] for one in found], float) for key in found[0]})
            for name, found in seeds.items()
        }
        # Tables and pictures ask for the same comparisons, each of thousands of draws.
        self.ratio = cache(self._ratio)
        self.spread = cache(self._spread) if like is None else like.spread

    def label(self, name: str) -> str:
        """What the first seed of a way is called."""
        seeded = f"{name}, seed 0"
        return seeded if seeded in self.stated["measured"] else name

    def seeds(self, name: str) -> int:
        return len(self.ways[name]["new_tokens"])

    def places(self, task: str | None = None) -> np.ndarray:
        """Of questions, all or those of a task."""
        return np.flatnonzero(self.tasks == task) if task else np.arange(len(self.tasks))

    def first(self, name: str) -> Result:
        """The same with one seed of a way, the first; seeds differ as here."""
        found = Result(self.stated, self)
        if name in self.ways:
            numbers = {key: value[:1] for key, value in self.ways[name].numbers.items()}
            found.ways[name] = Way(numbers)
        return found

    def value(self, measure: Measure, name: str, task: str | None = None) -> float:
        way = self.ways[name]
        return measure(way, np.arange(self.seeds(name)), self.places(task))

    def _spread(self, measure: Measure, task: str | None = None) -> tuple[float, int]:
        """By how much seeds differ: the deviation of a number's logarithm, and what it rests on.

        Args:
            task: whose questions alone, which are fewer.
        """
        squares, freedom = 0.0, 0
        for name, way in self.ways.items():
            count = self.seeds(name)
            if count < 2:
                continue
            found = [measure(way, np.array([i]), self.places(task)) for i in range(count)]
            if min(found) <= 0:  # of nothing no ratio is known
                continue
            logs = np.log(found)
            squares += float(((logs - logs.mean()) ** 2).sum())
            freedom += count - 1
        return (squares / freedom) ** 0.5 if freedom else 0.0, freedom

    def _ratio(
        self, measure: Measure, name: str, other: str, task: str | None = None
    ) -> tuple[float, float, float]:
        """Of one way's number to another's, on all questions or a task's, and its interval.

        Of ways that are made of one draft, the first seed's is compared, which both have.
        """
        places = self.places(task)
        ways = self.ways[name], self.ways[other]
        made = root(name) == root(other)
        counts = [1, 1] if made else [self.seeds(name), self.seeds(other)]
        every = [np.arange(count) for count in counts]
        found = over(measure(ways[0], every[0], places), measure(ways[1], every[1], places))
        generator = np.random.default_rng(0)
        groups = [places[self.tasks[places] == task] for task in dict.fromkeys(self.tasks[places])]
        trained = [root(one) not in UNTRAINED for one in (name, other)]
        deviation, freedom = (0.0, 0) if made else self.spread(measure, task)
        scale = deviation * sum(t / n for t, n in zip(trained, counts, strict=True)) ** 0.5
        drawn = []
        for _ in range(DRAWS):
            some = np.concatenate([generator.choice(group, len(group)) for group in groups])
            value = over(measure(ways[0], every[0], some), measure(ways[1], every[1], some))
            seed = scale * generator.standard_t(freedom) if freedom else 0.0
            drawn.append(value * np.exp(seed))
        low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        return found, float(low), float(high)

    def steps(self, name: str) -> str:
        """That an arm took, in all stages; from and to where its seeds differ."""
        logs = self.stated.get("logs", {})
        labels = [f"{name}, seed {seed}" for seed in range(self.seeds(name))]
        stages = [logs[label].values() for label in labels if label in logs]
        found = sorted({sum(lines[-1]["step"] for lines in one) for one in stages})
        return " to ".join(map(str, dict.fromkeys((*found[:1], *found[-1:]))))


def unseeded(label: str) -> str:
    """The way that a label is of, whichever seed."""
    return re.sub(r", seed \d+$", "", label)


def root(name: str) -> str:
    """What a way is made of."""
    while name != (name := MADE.sub("", name)):
        pass
    return name


def over(number: float, other: float) -> float:
    """Their ratio; infinite over a draft of which nothing was accepted."""
    return number / other if other else math.inf
