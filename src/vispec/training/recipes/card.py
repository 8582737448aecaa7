"""What both model cards of the embedded pair say: the licence, and what the training did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vispec.training.curves import read_log

LICENCE = """The weights in this folder are for research use only.

For research, you may use, copy and change them, and pass them on with this notice.

They were trained partly on photographs and questions of research-only data sets (Flickr8k, whose
photographs belong to their Flickr authors, and DAQUAR, with photographs of NYU Depth v2). The
code that trained them and the rendered scenes are under the project's own licence; the weights
are not. They come without warranty of any kind.
"""


def write_licence(folder: Path) -> None:
    """Leave `LICENSE` in a folder of weights."""
    (folder / "LICENSE").write_text(LICENCE)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def judged(work: Path, phase: str, name: str, points: int) -> list[dict[str, Any]]:
    """The lines of a phase's log that have `name`, at most `points` of them and the last."""
    lines = [line for line in read_log(work / phase) if name in line]
    every = max(1, -(-len(lines) // points))
    return [line for i, line in enumerate(lines) if (len(lines) - 1 - i) % every == 0]


def training_of(work: Path, phases: Iterable[str]) -> str:
    """One line a phase, from `<work>/<phase>/log.jsonl`; a phase without a log is left out."""
    lines = []
    for phase in phases:
        if log := read_log(work / phase):
            last = log[-1]
            lines.append(f"* {phase}: {last['step']} steps in {last['elapsed_s'] / 60:.1f} minutes")
    return "\n".join(lines)
