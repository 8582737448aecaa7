"""How much a target sees: its answers beside those to the same questions with another picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vispec.decoding.engine import Engine, Request
from vispec.decoding.sampling import Sampling
from vispec.evaluation import metrics
from vispec.evaluation.items import WORDS_TASK, Item, swapped
from vispec.training.scene_words import PLACES
from vispec.training.scenes import COLOURS, FORMS, RADII

MAX_NEW_TOKENS = 128
_TELLING = frozenset(
    {*COLOURS, *FORMS, *RADII, *(word for row in PLACES for place in row for word in place.split())}
)


@dataclass(frozen=True)
class Measure:
    """One number, with what it is when the picture is another one, and its goal.

    Attributes:
        name: what is measured.
        true, swapped: with the item's own picture, and with that of another item.
        least: smallest number to reach; of an error rate, the largest.
        gain: how much better than `swapped` it should be.
        items: how many it was measured on.
    """

    name: str
    true: float
    swapped: float
    least: float | None = None
    gain: float | None = None
    lower_is_better: bool = False
    items: int = 0

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.least is None and self.gain is None:
            return None
        sign = -1 if self.lower_is_better else 1
        enough = self.least is None or sign * self.true >= sign * self.least
        return enough and (self.gain is None or sign * (self.true - self.swapped) >= self.gain)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"difference": self.true - self.swapped, "reached": self.reached}


def answers(engine: Engine, items: Sequence[Item], temperature: float = 0.0) -> list[list[int]]:
    """Token ids of every answer; items are answered in batches."""
    requests = [
        Request(
            item.question,
            [item.image],
            Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, seed=seed),
        )
        for seed, item in enumerate(items)
    ]
    return [result.token_ids for result in engine.generate(requests)]


def read(engine: Engine, token_ids: Sequence[Sequence[int]]) -> list[str]:
    """Answers as text."""
    return [
        engine.target.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in token_ids
    ]


def score(items: Sequence[Item], said: Sequence[str]) -> dict[str, float]:
    """Every metric that the items' tasks allow, by name."""
    return {name: value for name, (value, _) in _scores(items, said).items()}


def _scores(items: Sequence[Item], said: Sequence[str]) -> dict[str, tuple[float, int]]:
    """By name, a metric and how many items it is of."""
    pairs = list(zip(items, said, strict=True))
    scores: dict[str, tuple[float, int]] = {}
    vqa = [metrics.first_sentence(i.answer) == metrics.first_sentence(s)
           for i, s in pairs if i.task == "vqa"]  # fmt: skip
    if vqa:
        scores["scene questions right"] = sum(vqa) / len(vqa), len(vqa)
    for name, task in (("all text", "read"), ("words", WORDS_TASK)):
        some = [(i, s) for i, s in pairs if i.task == task]
        if some:
            true = [metrics.quoted(i.answer) for i, _ in some]
            read = [metrics.quoted(s) for _, s in some]
            right = metrics.character_accuracy(true, read)
            wrong = metrics.character_error_rate(true, read)
            scores[f"characters right, {name}"] = right, len(some)
            scores[f"character error rate, {name}"] = wrong, len(some)
    captions = [(i, s) for i, s in pairs if i.task == "caption"]
    if captions:
        found = [
            len(facts(i.answer) & facts(s)) / max(1, len(facts(i.answer) | facts(s)))
            for i, s in captions
        ]
        scores["facts of a description right"] = sum(found) / len(found), len(found)
    shown = [(i, s) for i, s in pairs if i.task == "photo"]
    if shown:
        named = [metrics.names_the_subject(s, i.references) for i, s in shown]
        scores["photograph's subject named"] = sum(named) / len(named), len(named)
        scores["distinct captions"] = metrics.distinct([s for _, s in shown]), len(shown)
    return scores


def facts(description: str) -> set[tuple[str, ...]]:
    """What a scene's description claims: each sentence's words of colour, form, size and place."""
    told = set()
    for sentence in description.lower().split("."):
        words = tuple(sorted(set(sentence.split()) & _TELLING))
        if len(words) > 1:
            told.add(words)
    return told


GOALS: dict[str, dict[str, Any]] = {
    "scene questions right": {"gain": 0.25},
    "characters right, words": {"gain": 0.5},
    "character error rate, words": {"least": 0.15, "lower_is_better": True},
    "character error rate, all text": {"lower_is_better": True},
    "photograph's subject named": {"least": 0.6, "gain": 0.15},
    "distinct captions": {"least": 0.6},
}
"""What the embedded target should reach, by metric."""


def quality(
    engine: Engine, items: Sequence[Item], token_ids: Sequence[Sequence[int]]
) -> list[Measure]:
    """Scores of the answers `token_ids` to `items`, beside those to swapped pictures."""
    own = _scores(items, read(engine, token_ids))
    other = _scores(items, read(engine, answers(engine, swapped(items))))
    return [
        Measure(name, value, other[name][0], items=count, **GOALS.get(name, {}))
        for name, (value, count) in own.items()
    ]
