"""`vispec distill`: a target's answers to questions, to train drafts on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.text import Text

from vispec.cli import options as shared
from vispec.cli.terminal import Screen, quiet_libraries

DESCRIPTION = """\
Let a target answer questions, and keep what it says in Parquet files. A run that was interrupted
goes on where it was; several workers may share a folder, each with a number of its own. With a
draft the target answers sooner, and says the same."""

EXAMPLES = """\
questions are a folder with .jsonl files of prompts and pictures, a folder of pictures with a
prompts.txt, or the name of a dataset on the hub:
  vispec distill ./pictures --target ./my-llava --out answers
  vispec distill ./pictures --target ./my-llava --out answers --worker 0 --workers 2
"""


def add(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "distill",
        help="let a target write training data",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("questions", help="a folder, a .jsonl file, or a dataset of the hub")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the answers")
    parser.add_argument("--split", default="train", help="of a dataset (train)")
    parser.add_argument("--limit", type=int, default=0, help="questions, at most (all)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the answers (0)")
    parser.add_argument("--longer", action="store_true", help="ask for long answers")
    parser.add_argument("--without-pictures", action="store_true", help="show none")
    parser.add_argument(
        "-n", "--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (512)"
    )
    parser.add_argument("--batch", type=int, default=16, help="answered at the same time (16)")
    parser.add_argument("--worker", type=int, default=0, help="number of this worker, from 0 on")
    parser.add_argument("--workers", type=int, default=1, help="how many share the folder (1)")
    shared.add_models(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read the questions, ask them, say how many were answered."""
    shared.need_training()
    quiet_libraries()
    from vispec.errors import SettingsError
    from vispec.loading import load
    from vispec.training.distill import distill
    from vispec.training.questions import Source, questions

    if not 0 <= options.worker < options.workers:
        raise SettingsError(
            f"worker {options.worker} is none of {options.workers}", "They are counted from 0 on."
        )
    source = Source(
        path=options.questions,
        split=options.split,
        limit=options.limit,
        shown=not options.without_pictures,
        temperature=options.temperature,
        longer=options.longer,
    )
    asked = questions(source, "question")
    engine = load(
        options.target,
        shared.draft_name(options),
        dtype=options.dtype,
        device=options.device,
        max_batch=options.batch,
        allow_pickle=options.allow_pickle,
    )
    with shared.kept(options.out):
        found = distill(
            engine,
            asked,
            options.out,
            max_new_tokens=options.max_new_tokens,
            batch=12 * options.batch,
            worker=options.worker,
            workers=options.workers,
        )
    said = f"{options.out}: {len(found)} of {len(asked)} questions are answered"
    Screen().put(Text(said + (f", {len(found.errors)} skipped" if found.errors else "")))
    return 0
