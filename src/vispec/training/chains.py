"""What chains of guesses accept of answers that are known, without decoding them again.

Greedy drafting behind a token is right as long as each of its guesses is the token that was said;
so the walk of a chain draft through an answer is known from which guesses are right behind every
position.
"""

from __future__ import annotations

from torch import Tensor


def walked(right: Tensor, tokens: Tensor, real: Tensor) -> dict[str, float]:
    """Walk through answers as decoding does.

    Args:
        right: `[b, a, depth]`, whether the guess of each step behind each position is right.
        tokens: `[b, a]`, what was said behind the positions; -1 where nothing was.
        real: `[b, a]`, which positions there are.

    Returns:
        `acceptance_length`: tokens a pass of the target, its own included; and
        `accepted_1` … : the share of all positions behind which so many tokens are right.
    """
    together = right.long().cumprod(-1)
    # Behind a last token that nothing was said behind, no chain begins.
    ends = ((tokens >= 0) & real).sum(1).tolist()
    said = cycles = 0
    for accepted, end in zip(together.sum(-1).tolist(), ends, strict=True):
        place = 0
        while place < end:
            step = min(accepted[place] + 1, end - place)
            said, cycles, place = said + step, cycles + 1, place + step
    share = together[real].double().mean(0).tolist()
    return {
        "acceptance_length": said / max(1, cycles),
        **{f"accepted_{i + 1}": value for i, value in enumerate(share)},
        "cycles": float(cycles),
        "said": float(said),
    }


def joined(parts: list[dict[str, float]], positions: list[int]) -> dict[str, float]:
    """What `walked` found of several batches as if they were one.

    Args:
        positions: of each part.
    """
    whole = sum(positions)
    found = {
        name: sum(part[name] * n for part, n in zip(parts, positions, strict=True)) / whole
        for name in parts[0]
        if name.startswith("accepted_")
    }
    cycles, said = (sum(part[name] for part in parts) for name in ("cycles", "said"))
    return {"acceptance_length": said / max(1.0, cycles), **found, "cycles": cycles, "said": said}
