"""Which tree is fastest, from measured speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from vispec.decoding.engine import Engine, Request
from vispec.decoding.tree import TreeShape

TREES = tuple(
    TreeShape(size, depth, width)
    for size, depth, width in (
        (6, 3, 2), (8, 5, 2), (12, 6, 3), (12, 8, 2), (16, 8, 3), (24, 7, 6), (16, 10, 2),
        (24, 10, 4), (32, 12, 4), (32, 16, 3),
    )
)  # fmt: skip
"""Candidates, small to large. A good draft of plain text is right ten times in a row."""
CHAINS = tuple(TreeShape.chain(length) for length in (2, 3, 4, 6, 8, 10, 13, 16))


def tell(shape: TreeShape, rate: float) -> None:
    """Print a candidate and its speed."""
    print(f"{shape}: {rate:.0f} tokens/s", flush=True)


def fastest_tree(
    engine: Callable[[TreeShape], Engine],
    candidates: Sequence[TreeShape],
    requests: Sequence[Request],
    *,
    rounds: int = 2,
    report: Callable[[TreeShape, float], None] = tell,
    answered: Callable[[], None] = lambda: None,
) -> TreeShape:
    """The candidate with the most tokens a second.

    Args:
        engine: makes the engine of a tree.
        candidates: trees.
        requests: what is asked, one at a time.
        rounds: how often.
        report: receives every candidate and its tokens a second.
        answered: see `speeds`.
    """
    rates = speeds([engine(shape) for shape in candidates], requests, rounds, answered)
    for shape, rate in zip(candidates, rates, strict=True):
        report(shape, rate)
    return candidates[rates.index(max(rates))]


def speeds(
    engines: Sequence[Engine],
    requests: Sequence[Request],
    rounds: int = 2,
    answered: Callable[[], None] = lambda: None,
) -> list[float]:
    """Tokens a second of each, over whole answers.

    All answer each request in turn, in an order that turns too, so that a machine that slows down
    slows all of them; one more round before the counted ones lets compile what compiles. Of each
    request the fastest round counts: whatever else the machine did only ever adds to the others.

    Args:
        requests: what is asked, one at a time.
        rounds: how often.
        answered: called after every answer, those of the round before the counted ones included.
    """
    tokens = [0] * len(engines)
    seconds = [[float("inf")] * len(requests) for _ in engines]
    for turn in range(rounds + 1):
        for place, request in enumerate(requests):
            for number in range(len(engines)):
                i = (number + place) % len(engines)
                begun = time.perf_counter()
                (result,) = engines[i].generate([request])
                if turn:
                    seconds[i][place] = min(seconds[i][place], time.perf_counter() - begun)
                else:
                    tokens[i] += len(result.token_ids)
                answered()
    return [count / max(sum(spent), 1e-9) for count, spent in zip(tokens, seconds, strict=True)]
