"""A picture of a run: losses, and what is accepted of held-out answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def draw(folder: Path, stages: Sequence[str], out: Path) -> None:
    """Draw the stages of a run one behind the other.

    Args:
        folder: holds `<stage>/log.jsonl`.
        out: a `.png` or `.svg` file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    begun = 0.0
    for number, stage in enumerate(stages):
        lines = read_log(folder / stage)
        if not lines:
            continue
        colour = f"C{number}"
        minutes = [(begun + line["elapsed_s"] / 60, line) for line in lines]
        for axes, name in ((left, "loss"), (right, "heldout_acceptance_length")):
            shown = [(x, line[name]) for x, line in minutes if name in line]
            if shown:
                axes.plot(*zip(*shown, strict=True), color=colour, label=stage, marker=".")
        begun = minutes[-1][0]
    left.set(title="loss", xlabel="minutes", yscale="log")
    right.set(title="held-out acceptance length, greedy chain", xlabel="minutes")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(out, dpi=120)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a stage's log, but for one that a kill cut short; none without a log."""
    path = folder / "log.jsonl"
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines
