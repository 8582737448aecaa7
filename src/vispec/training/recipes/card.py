"""What both model cards of the embedded pair say: the licence, and what the training did."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

LICENCE = """The weights in this folder are for research use only.

They were trained partly on photographs and questions of research-only data sets (Flickr8k, whose
photographs belong to their Flickr authors, and DAQUAR, with photographs of NYU Depth v2). The
code that trained them and the rendered scenes are under the project's own licence; the weights
are not. They come without warranty of any kind.
"""


def write_licence(folder: Path) -> None:
    """Leave `LICENSE` in a folder of weights."""
    (folder / "LICENSE").write_text(LICENCE)


def training_of(work: Path, phases: Iterable[str]) -> str:
    """One line a phase, from `<work>/<phase>/log.jsonl`; a phase without a log is left out."""
    lines = []
    for phase in phases:
        path = work / phase / "log.jsonl"
        if path.exists():
            last = json.loads(path.read_text().splitlines()[-1])
            lines.append(f"* {phase}: {last['step']} steps in {last['elapsed_s'] / 60:.1f} minutes")
    return "\n".join(lines)
