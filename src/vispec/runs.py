"""Work folders of long runs, which go on where they were interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vispec.errors import VispecError
from vispec.writing import write_json


def claim(folder: Path, facts: Mapping[str, Any], name: str = "run.json") -> None:
    """Keep a work folder to one run: make it, or check that what it holds is of this run.

    Args:
        folder: of results that a repeated command would take as its own.
        facts: what the results depend on, fit for JSON.
        name: of the file that keeps them.

    Raises:
        VispecError: if the folder was claimed with other facts.
    """
    path, facts = folder / name, json.loads(json.dumps(facts))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, facts)
    kept = json.loads(path.read_text())
    if told := _differences(kept, facts):
        raise VispecError(f"{folder} is of another run: {'; '.join(told)}; give another folder")


def _differences(kept: Mapping[str, Any], facts: Mapping[str, Any], within: str = "") -> list[str]:
    """What differs, each by its own name rather than that of a table that it is in."""
    found = []
    for name in dict.fromkeys((*facts, *kept)):
        was, now = kept.get(name), facts.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differences(was, now, f"{within}{name}.")
        elif was != now:
            found.append(f"{within}{name} was {was!r}, now it is {now!r}")
    return found
