"""The tables and pictures of README and documentation, from the results that benchmarks wrote.

    python benchmarks/report.py             # rewrite them
    python benchmarks/report.py --check     # fail if a page says anything else

Tables stand between ``<!-- NAME -->`` and ``<!-- end NAME -->`` on their page. Pictures lie beside
the results; drawing them needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import drafts_report
import speed_report
from drafts_report import digest
from speed_report import TASKS
from vispec.checkpoints.files import fingerprint
from vispec.training.recipes.card import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ROOT / "src" / "vispec" / "models"
PICTURE = RESULTS / "embedded-cpu.svg"


def sight(report: dict[str, Any]) -> str:
    """What the target sees, with the true and with another picture."""
    lines = []
    for m in report["quality"]:
        aims = []
        if m["least"] is not None:
            aims.append(f"{'at most' if m['lower_is_better'] else 'at least'} {m['least']:.2f}")
        if m["gain"] is not None:
            aims.append(f"{m['gain']:.2f} above another picture's")
        cells = (
            m["name"],
            str(m["items"]),
            f"{m['true']:.3f}",
            f"{m['swapped']:.3f}",
            ", ".join(aims),
            _verdict(m["reached"]),
        )
        lines.append(cells)
    return table(("measure", "items", "its picture", "another picture", "aim", ""), lines)


def acceptance(report: dict[str, Any]) -> str:
    """What the draft accepts, beside tables that see no picture."""
    header = (
        "task",
        "bits a token, sampled",
        "bigrams, the draft's tree",
        "bigrams, best tree",
        "prompt lookup",
        "ViSpec",
        "ViSpec over the better",
        "aim: 1.5",
        "over the best tree",
    )
    lines = []
    found = {row["task"]: row for row in report["acceptance"]}
    for task, name in TASKS.items():
        if task in found:
            row = found[task]
            best = max(row["bigrams_any_tree"], row["prompt_lookup"])
            cells = (
                name,
                f"{row['bits_per_token']:.2f}",
                f"{row['bigrams']:.2f}",
                f"{row['bigrams_any_tree']:.2f}",
                f"{row['prompt_lookup']:.2f}",
                f"{row['draft']:.2f}",
                f"{row['advantage']:.2f}x",
                _verdict(row["reached"]),
                f"{row['draft'] / best:.2f}x",
            )
            lines.append(cells)
    counts = ", ".join(
        f"{found[task]['table']} ({name})" for task, name in TASKS.items() if task in found
    )
    said = (
        "that the draft learnt from" if "--answers" in report["command"] else "to other questions"
    )
    return (
        f"{table(header, lines)}\n\nThe tables of bigrams are of answers {said}: {counts}. "
        "The aim is judged by the draft's own tree; bigrams, which foresee little, do better with a"
        " wider and shorter one."
    )


def _verdict(reached: bool | None) -> str:
    return "" if reached is None else "reached" if reached else "**not reached**"


def measured(name: str) -> dict[str, Any] | None:
    """Results `NAME.json` and `NAME-….json` as one; each has other tasks."""
    results = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{name}*.json"))]
    if not results:
        return None
    lists = {
        key: [each for result in results for each in result.get(key, [])]
        for key in ("rows", "repeats")
    }
    return {**results[-1], **lists}


def conformance(report: dict[str, Any]) -> str:
    """What every family was asked, and what it answered."""
    questions = list(next(iter(report["families"].values())))
    words = {"yes": "yes", "no": "**no**", "none": "–", "unasked": "?"}
    lines = [
        (family, *(words[asked[q]] for q in questions))
        for family, asked in report["families"].items()
    ]
    return table(("family", *questions), lines)


def sections() -> dict[str, dict[str, str]]:
    """What belongs between the marks of every page, by mark."""
    found: dict[str, dict[str, str]] = {"README.md": {}, "docs/speed.md": {}, "docs/drafts.md": {}}
    short = {
        "speed-chain": speed_report.chain,
        "speed": speed_report.headline,
        "speed-summary": speed_report.summary,
    }
    whole = {
        "speed-conditions": speed_report.conditions,
        "speed-methods": speed_report.every_method,
        "speed-speculation": speed_report.speculation,
        "speed-cycles": speed_report.cycles,
        "speed-limits": speed_report.limits,
    }
    for page, name, parts in (
        ("README.md", "embedded-cpu", short),
        ("docs/speed.md", "embedded-cpu", whole),
        ("README.md", "embedded-quality", {"sight": sight, "acceptance": acceptance}),
        ("README.md", "conformance", {"conformance": conformance}),
    ):
        result = measured(name)
        if result is not None:
            late = of_another_pair(result)
            for mark, part in parts.items():
                found[page][mark] = part(result) + late * (mark != "speed-chain")
    for mark, text in drafts_report.sections(RESULTS, of_another_pair).items():
        found["docs/drafts.md"][mark] = text
    return found


def of_another_pair(result: Mapping[str, Any]) -> str:
    """Sentences, if a result is about weights that are shipped no more, or of unknown code."""
    folders = {
        **dict.fromkeys(("draft", "vispec"), MODELS / "draft"),
        "target": MODELS / "target",
        **{name: ROOT / "benchmarks" / "drafts" / name for name in ("eagle3", "eagle-text")},
    }
    changed = [
        name
        for name, mark in result.get("weights", {}).items()
        if name in folders and fingerprint(folders[name]) != mark
    ]
    said = []
    if changed:
        names = ", ".join(changed)
        said.append(f"Measured with other weights than those that are shipped now ({names}).")
    if any(
        part.get("commit", "").endswith("changed") for part in (result, *result.get("repeats", []))
    ):
        said.append("Measured with code that was not committed.")
    return "".join(f"\n\n*{sentence}*" for sentence in said)


def written(page: str, parts: dict[str, str]) -> str:
    """The page with every part between its marks.

    Raises:
        ValueError: if a part has no place on the page.
    """
    for mark, text in parts.items():
        place = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end {mark} -->)", re.DOTALL)
        if not place.search(page):
            raise ValueError(f"the page has no <!-- {mark} --> … <!-- end {mark} -->")
        page = place.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    return page


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if it would")
    given = parser.parse_args(list(arguments) if arguments is not None else None)
    pages = {ROOT / name: parts for name, parts in sections().items() if parts}
    before = {page: page.read_text(encoding="utf-8") for page in pages}
    after = {page: written(before[page], parts) for page, parts in pages.items()}
    result = measured("embedded-cpu")
    if given.check:
        drawn = result is None or (PICTURE.exists() and digest(result) in PICTURE.read_text())
        drawn = drawn and drafts_report.drawn(RESULTS)
        if after != before or not drawn:
            sys.exit("pages or pictures are not of what was measured: run benchmarks/report.py")
        return
    for page, text in after.items():
        page.write_text(text, encoding="utf-8")
    if result is not None:
        speed_report.draw(result, PICTURE)
    drafts_report.draw(RESULTS)


if __name__ == "__main__":
    main()
