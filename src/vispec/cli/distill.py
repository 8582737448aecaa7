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
or a recipe, all whose questions are answered, for `vispec train mine.toml --cache shared`:
  vispec distill mine.toml --out shared
"""
OF_A_SOURCE = {
    "target": "embedded",
    "config": "",
    "split": "train",
    "limit": 0,
    "temperature": 0.0,
    "longer": False,
    "without_pictures": False,
    "max_new_tokens": 512,
    "batch": 16,
}
"""What a recipe says itself, and what it is without one."""


def add(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "distill",
        help="let a target write training data",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "questions", help="a folder, a .jsonl file, a dataset of the hub, or a recipe"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the answers")
    parser.add_argument("--config", help="of a dataset")
    parser.add_argument("--split", help="of a dataset (train)")
    parser.add_argument("--limit", type=shared.count, metavar="N", help="questions, at most (all)")
    parser.add_argument("--temperature", type=shared.amount, metavar="T", help="of answers (0)")
    parser.add_argument("--longer", action="store_const", const=True, help="ask for long answers")
    parser.add_argument("--without-pictures", action="store_const", const=True, help="show none")
    parser.add_argument(
        "-n", "--max-new-tokens", type=shared.count, metavar="N", help="longest answer (512)"
    )
    parser.add_argument(
        "--batch", type=shared.count, metavar="N", help="answered at the same time (16)"
    )
    parser.add_argument(
        "--worker", type=shared.count, default=0, help="number of this worker, from 0 on"
    )
    parser.add_argument(
        "--workers", type=shared.count, default=1, help="how many share the folder (1)"
    )
    shared.add_models(parser)
    parser.set_defaults(run=run, **dict.fromkeys(OF_A_SOURCE), resumes=True)


def run(options: argparse.Namespace) -> int:
    """Read the questions, ask them, say how many were answered."""
    shared.need_training()
    quiet_libraries()
    from vispec.errors import SettingsError
    from vispec.loading import load
    from vispec.runs import claim
    from vispec.training.distill import Answers, Question, distill
    from vispec.training.pipeline import answer, claim_answers, identity
    from vispec.training.questions import Source, questions
    from vispec.training.recipe import read_recipe, recipe_file

    if not 0 <= options.worker < options.workers:
        raise SettingsError(
            f"worker {options.worker} is none of {options.workers}", "They are counted from 0 on."
        )
    given = options.questions
    # A folder of pictures may be called as a recipe is.
    file = recipe_file(given) if given.endswith(".toml") or not Path(given).exists() else None
    # What its stages can train is training's matter.
    recipe = None if file is None else read_recipe(file, begun=True)
    asked: dict[str, list[Question]]
    if recipe is not None:
        said = [name for name in OF_A_SOURCE if getattr(options, name) is not None]
        if said:
            raise SettingsError(
                f"--{said[0].replace('_', '-')} is given, and {file} is a recipe, which says that",
                "Change the recipe.",
            )
        options.target, options.batch = recipe.target, recipe.max_batch
        asked = {name: questions(source, name) for name, source in recipe.data.items()}
    else:
        for name, value in OF_A_SOURCE.items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        source = Source(
            path=given,
            config=options.config,
            split=options.split,
            limit=options.limit,
            shown=not options.without_pictures,
            temperature=options.temperature,
            longer=options.longer,
        )
        asked = {"question": questions(source, "question")}
    engine = load(
        options.target,
        shared.draft_name(options),
        dtype=options.dtype,
        device=options.device,
        max_batch=options.batch,
        allow_pickle=options.allow_pickle,
    )
    found: dict[str, Answers]
    with shared.kept(options.out):
        if recipe is not None:
            claim_answers(recipe, options.out, asked)
            found = answer(engine, recipe, options.out, asked, options.worker, options.workers)
        else:
            # Hidden, so that whoever opens the folder as a dataset finds answers alone.
            claim(options.out, identity(options.target), ".target.json")
            (group,) = asked.values()
            answers = distill(
                engine,
                group,
                options.out,
                max_new_tokens=options.max_new_tokens,
                batch=12 * options.batch,
                worker=options.worker,
                workers=options.workers,
            )
            found = {"question": answers}
    for name, answers in found.items():
        place = options.out if recipe is None else options.out / "answers" / name
        text = f"{place}: {len(answers)} of {len(asked[name])} questions are answered"
        Screen().put(Text(text + (f", {len(answers.errors)} skipped" if answers.errors else "")))
    return 0
