"""Which tree is fastest, from measured speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from vispec.decoding.engine import Engine, Request
from vispec.decoding.tree import TreeShape

TREES = tuple(
    TreeShape(size, depth, width)
    for size, depth, width in (
        (6, 3, 2), (8, 4, 2), (8, 5, 2), (12, 5, 3), (12, 6, 3), (16, 6, 4), (24, 7, 6),
    )
)  # fmt: skip
"""Candidates, small to large."""
CHAINS = tuple(TreeShape.chain(length) for length in (2, 3, 4, 5, 6))


def fastest_tree(
    engine: Callable[[TreeShape], Engine],
    candidates: Sequence[TreeShape],
    requests: Sequence[Request],
    *,
    rounds: int = 2,
    report: Callable[[str], None] = print,
) -> TreeShape:
    """The candidate with the most tokens a second.

    Args:
        engine: makes the engine of a tree.
        candidates: trees.
        requests: what is asked, one at a time.
        rounds: how often.
        report: receives a line a candidate.
    """
    rates = speeds([engine(shape) for shape in candidates], requests, rounds)
    for shape, rate in zip(candidates, rates, strict=True):
        report(f"{shape}: {rate:.0f} tokens/s")
    return candidates[rates.index(max(rates))]


def speeds(engines: Sequence[Engine], requests: Sequence[Request], rounds: int = 2) -> list[float]:
    """Tokens a second of each, over whole answers.

    All answer each request in turn, in an order that turns too, so that a machine that slows down
    slows all of them; one more round before the counted ones lets compile what compiles.

    Args:
        requests: what is asked, one at a time.
        rounds: how often.
    """
    seconds, tokens = [0.0] * len(engines), [0] * len(engines)
    for turn in range(rounds + 1):
        for place, request in enumerate(requests):
            for number in range(len(engines)):
                i = (number + place) % len(engines)
                begun = time.perf_counter()
                (result,) = engines[i].generate([request])
                if turn:
                    seconds[i] += time.perf_counter() - begun
                    tokens[i] += len(result.token_ids)
    return [count / max(spent, 1e-9) for count, spent in zip(tokens, seconds, strict=True)]
