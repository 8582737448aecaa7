"""`vispec info`: what a checkpoint is, and whether a draft fits a target."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vispec.cli import options as shared
from vispec.cli.options import EMBEDDED
from vispec.cli.terminal import Screen, quiet_libraries

if TYPE_CHECKING:
    from vispec.checkpoints.summary import Summary

DESCRIPTION = """\
Say what a checkpoint is, how large it is, what memory it needs and under which licence it
comes, from its configuration and the headers of its files; no weights are loaded.
With --target, say as well whether a draft fits that target, and if not, all that differs."""

EXAMPLES = """\
examples:
  vispec info embedded                                the built-in target and its draft
  vispec info ./my-draft --target ./my-llava          does this draft fit that model?
  vispec info llava-hf/llava-1.5-7b-hf --json
"""

MISFIT = 1


def add(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "info", help="what a checkpoint is", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("checkpoint", help="'embedded', a folder, or a hub name")
    parser.add_argument(
        "--target", metavar="MODEL", help="a target that the draft should fit; exit code 1 if not"
    )
    parser.add_argument("--json", action="store_true", help="print one object")
    shared.add_trust(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look, compare, show."""
    quiet_libraries()
    from vispec.checkpoints.summary import mismatches, summarise

    is_pair = options.checkpoint == EMBEDDED
    roles = ("target", "draft") if is_pair else ("target",)
    pickled = options.allow_pickle
    summaries = [summarise(options.checkpoint, role, pickled=pickled) for role in roles]
    target = options.target or (EMBEDDED if is_pair else None)
    misfits = mismatches(options.checkpoint, target, pickled=pickled) if target else None
    draft = summaries[-1]
    if misfits is not None and draft.problems:
        misfits += ["it cannot be loaded: see its problems"]
    if options.json:
        found = {"checkpoints": [summary.as_dict() for summary in summaries]}
        fit = {"target": target, "fits": not misfits, "mismatches": misfits} if target else {}
        print(json.dumps(found | fit))
        return MISFIT if misfits else 0
    screen = Screen()
    for summary in summaries:
        show(screen, summary)
    if misfits is not None:
        screen.put(Text(verdict(draft, target, misfits)))
    return MISFIT if misfits else 0


def verdict(draft: Summary, target: str | None, misfits: list[str]) -> str:
    """One line, or one for everything that differs or should be known."""
    whose = "the embedded draft" if draft.name == EMBEDDED else f"'{draft.name}'"
    whom = "the embedded target" if target == EMBEDDED else f"'{target}'"
    if misfits:
        return "\n  ".join([f"{whose} does not fit {whom}:", *misfits])
    known = []
    if target != EMBEDDED and draft.trained_for and _last(draft.trained_for) != _last(target or ""):
        known.append(
            f"it was trained for {draft.trained_for}; if that is another model than {whom},"
            " the text is right all the same, but little of what is drafted is accepted"
        )
    if not draft.supported:
        known.append("this version reads and checks such drafts, but cannot draft with them")
    return "\n  ".join([f"{whose} fits {whom}" + (", but:" if known else ""), *known])


def _last(name: str) -> str:
    """Of a path or a hub name, without its revision."""
    return name.rstrip("/").rpartition("/")[2].partition("@")[0].lower()


def show(screen: Screen, summary: Summary) -> None:
    """Aligned lines for people, `label: value` for programs."""
    if not screen.rich:
        for label, value in rows(summary):
            screen.put(Text(f"{label}: {value}"))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for label, value in rows(summary):
        grid.add_row(label, Text(value))
    screen.put(grid)
    screen.put(Text())


def rows(summary: Summary) -> list[tuple[str, str]]:
    """Label and value of every line."""
    known = ""
    if not summary.supported:
        is_draft = summary.kind == "draft"
        known = f" (vispec {'cannot draft with it yet' if is_draft else 'has no file for it'})"
    found = [
        ("checkpoint", summary.name),
        ("kind", f"{summary.kind}, {summary.form}{known}"),
        *([("trained for", summary.trained_for)] if summary.trained_for else []),
        ("geometry", geometry(summary)),
        (
            "parameters",
            f"{count(summary.parameters)}: "
            + ", ".join(f"{name} {count(size)}" for name, size in summary.parts.items()),
        ),
        ("weights", f"{size(summary.weights_bytes)} as {', '.join(summary.stored_as)}"),
        (
            "memory",
            ", ".join(f"{size(n)} in {kind}" for kind, n in summary.memory_bytes.items()),
        ),
    ]
    if summary.cache_bytes_per_token:
        per_token = summary.cache_bytes_per_token
        full = f", {size(per_token * summary.context)} when full" if summary.context else ""
        found.append(("cache", f"{size(per_token)} a token in two-byte numbers{full}"))
    if summary.context:
        found.append(("context", f"{summary.context} tokens"))
    found.append(("licence", summary.licence or "not stated"))
    found += [("problem", line) for line in summary.problems]
    return found


def geometry(summary: Summary) -> str:
    """Layers, width, heads and vocabulary, as far as the configuration states them."""
    names = {
        "num_hidden_layers": "layers deep",
        "hidden_size": "wide",
        "num_attention_heads": "heads",
        "num_key_value_heads": "key/value heads",
        "vocab_size": "tokens in the vocabulary",
    }
    return ", ".join(
        f"{summary.geometry[key]} {name}" for key, name in names.items() if key in summary.geometry
    )


def count(number: int) -> str:
    """A number of parameters to three digits."""
    for unit, step in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if number >= step:
            return f"{number / step:.3g} {unit}"
    return str(number)


def size(number: int) -> str:
    """Bytes to three digits, in powers of 1000."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= step:
            return f"{number / step:.3g} {unit}"
    return f"{number} bytes"
