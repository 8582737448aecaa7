"""The table of families, from the results of the tests that ask every family the same.

    python benchmarks/conformance.py TESTS.xml      # JUnit's format, which pytest writes

``make conformance`` runs the tests and this. A question is answered with yes if all its tests
passed, with "–" where the family takes no such thing, and with **no** otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import transformers

from vispec.evaluation.conditions import commit

OUT = Path(__file__).resolve().parent / "results" / "conformance.json"
QUESTIONS = {
    "greedy": r"test_greedy_text.*\[(?P<family>.*)-(nothing|an image)\]",
    "sampled": r"test_seeded_sampling.*\[(?P<family>.*)\]",
    "several images": r"test_greedy_text.*\[(?P<family>.*)-images\]",
    "video": r"test_greedy_text.*\[(?P<family>.*)-videos\]",
    "batch": r"test_a_batch_inside_generate.*\[(?P<family>.*)\]",
    **{
        name: rf"test_every_kind_of_draft_(leaves|reads).*\[(?P<family>.*)-{name}\]"
        for name in ("ViSpec", "EAGLE", "EAGLE-3")
    },
}
"""Columns of the table, and the tests that answer for them."""

NONE = "it takes no"
"""How a test says that a family has nothing of what it asks about."""


def outcomes(xml: Path) -> list[tuple[str, str]]:
    """`(test, "passed" | "failed" | "skipped")` of every test in the report."""
    found = []
    for case in ElementTree.parse(xml).iter("testcase"):
        kinds = {child.tag for child in case}
        skipped = case.find("skipped")
        state = "failed" if kinds & {"failure", "error"} else "passed"
        if skipped is not None:
            # Whatever else keeps a test from running is no answer.
            state = "skipped" if skipped.get("message", "").startswith(NONE) else "failed"
        found.append((case.get("name", ""), state))
    return found


def table(results: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Family to question to `"yes"`, `"no"`, `"unasked"`, or `"none"` where it takes none such."""
    families: dict[str, dict[str, list[str]]] = {}
    for test, state in results:
        for question, pattern in QUESTIONS.items():
            match = re.match(pattern, test)
            if match:
                families.setdefault(match["family"], {}).setdefault(question, []).append(state)
    return {
        family: {question: _verdict(asked.get(question, [])) for question in QUESTIONS}
        for family, asked in sorted(families.items())  # tests run side by side, in any order
    }


def _verdict(states: list[str]) -> str:
    if "failed" in states:
        return "no"
    if not states:
        return "unasked"
    return "yes" if "passed" in states else "none"


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("xml", type=Path, help="of pytest --junitxml")
    parser.add_argument("--out", type=Path, default=OUT, help="where the result goes, as JSON")
    given = parser.parse_args(list(arguments) if arguments is not None else None)
    families = table(outcomes(given.xml))
    if not families:
        sys.exit(f"{given.xml} has no test of a family")
    result: dict[str, Any] = {
        "commit": commit(),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "families": families,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [
        f"{f}: {q}"
        for f, asked in families.items()
        for q, v in asked.items()
        if v in ("no", "unasked")
    ]
    print(f"{len(families)} families, {len(wrong)} questions answered with no or not asked")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
