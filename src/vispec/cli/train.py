"""`vispec train`: a recipe in, a draft out."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.text import Text

from vispec.cli import options as shared
from vispec.cli.terminal import Screen, quiet_libraries
from vispec.errors import SettingsError

DESCRIPTION = """\
Train a draft for a target: the target answers the recipe's questions, what it saw while it did is
kept, and the draft learns from that in stages. Everything lies in one folder, and a run that was
interrupted goes on where it was. Under `accelerate launch -m vispec train …` several processes
share the work."""

EXAMPLES = """\
recipes that come along (vispec train --list):
  vispec train llava-1.5-7b --out runs/llava           by name; or a .toml file of yours
  vispec train mine.toml --out runs/mine --check       is the recipe right? nothing is loaded
  vispec train mine.toml --out runs/tuned --init runs/mine/draft     go on from a draft
  vispec train one.toml two.toml --out runs/both       two targets, adapters around one core
"""


def add(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "train", help="train a draft", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "recipe",
        nargs="*",
        help="a .toml file, or the name of one that comes along; several have adapters of the kind "
        "'unified', around a core that they share",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the run")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="answers and features that runs share (--out)"
    )
    parser.add_argument(
        "--init",
        metavar="DRAFT",
        help="a draft to begin with; takes the recipe's adapter if it has none",
    )
    parser.add_argument("--target", metavar="MODEL", help="in place of the recipe's target")
    parser.add_argument("--device", default="auto", help="where the target is put (auto)")
    parser.add_argument(
        "--auto",
        type=shared.amount,
        metavar="MINUTES",
        help="first train the recipe's candidates for so long together, and take the fastest",
    )
    parser.add_argument("--check", action="store_true", help="read the recipe, and stop")
    parser.add_argument("--list", action="store_true", help="name the recipes that come along")
    parser.set_defaults(run=run, resumes=True)


def run(options: argparse.Namespace) -> int:
    """Read the recipe, train, say what is accepted."""
    shared.need_training()
    quiet_libraries()
    from dataclasses import replace

    from vispec.training.drafts import refuse_unfit
    from vispec.training.recipe import RECIPES, Recipe, read_recipe, recipe_file

    screen = Screen()
    if options.list:
        for path in sorted(RECIPES.glob("*.toml")):
            first = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
            screen.put(Text(f"{path.stem}: {first}"))
        return 0
    recipes: dict[str, Recipe] = {}
    for name in options.recipe:
        file = recipe_file(name) or Path(name)
        if not file.exists():
            raise SettingsError(
                f"there is no recipe '{name}'", "Give a .toml file, or one of vispec train --list."
            )
        if file.stem in recipes:
            raise SettingsError(f"two recipes are called '{file.stem}'", "Rename one of them.")
        recipe = read_recipe(file, begun=options.init is not None)
        recipe = replace(recipe, target=options.target or recipe.target)
        if options.check:
            if options.init is not None:
                refuse_unfit(recipe, options.init)
            screen.put(Text(f"{file} is a recipe for {recipe.target}"))
            for source, wanted in recipe.data.items():
                if not Path(wanted.path).exists():
                    said = f"[data.{source}] {wanted.path!r} is not here: a dataset of the hub?"
                    screen.put(Text(said))
        recipes[file.stem] = recipe
    if not recipes:
        raise SettingsError("no recipe is given", "Name a .toml file, or see --list.")
    together = len(recipes) > 1
    refuse_what_does_not_go_together(options, together)
    if together:
        from vispec.training.unified import refuse_what_shares_nothing

        refuse_what_shares_nothing(recipes)
    if options.check:
        return 0
    if options.out is None:
        raise SettingsError("nowhere to put the run", "Give --out FOLDER.")
    given = {
        "command": shlex.join(["vispec", *sys.argv[1:]]),
        "device": options.device,
        "cache": options.cache or options.out,
    }
    with shared.kept(options.out):
        if together:
            from vispec.training.unified import train_together

            found = train_together(recipes, options.out, **given)
            lengths = {options.out / name / "draft": one for name, one in found.items()}
        else:
            from vispec.training.pipeline import train

            (recipe,) = recipes.values()
            if options.auto is not None:
                from vispec.training.auto import choose

                best = choose(recipe, options.out, options.auto, **given)
                screen.put(Text(f"fastest of {len(recipe.candidates)}: {best}"))
                recipe = replace(recipe, draft=best)
            found_one = train(recipe, options.out, init=options.init, **given)
            lengths = {options.out / "draft": found_one}
    for place, numbers in lengths.items():
        length = numbers["acceptance_length"]
        screen.put(Text(f"{place}: {length:.2f} tokens a pass, greedy chain, held out"))
    return 0


def refuse_what_does_not_go_together(options: argparse.Namespace, together: bool) -> None:
    """Raise `SettingsError` for options that mean nothing beside each other."""
    if options.auto is not None and options.init:
        raise SettingsError("a draft to begin with is no candidate", "Give --auto or --init.")
    for name in ("auto", "init", "target") if together else ():
        if getattr(options, name) is not None:
            raise SettingsError(
                f"--{name} is given, and several recipes", "It is for a single recipe."
            )
