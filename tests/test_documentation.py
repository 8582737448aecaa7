"""What the documentation says to type is understood, and what it points at exists."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vispec.cli import compress, demo, distill, export, generate, info, select, train
from vispec.cli.parser import Parser
from vispec.training.questions import Source
from vispec.training.recipe import DraftRecipe, Recipe, StageRecipe, recipe

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/checkpoints.md",
    "docs/drafts.md",
    "docs/new-family.md",
    "docs/recipes.md",
    "docs/speed.md",
    "docs/training.md",
    "src/vispec/assets/README.md",
)


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_every_command_of_the_readme_is_understood() -> None:
    parser = Parser(prog="vispec")
    verbs = parser.add_subparsers(required=True)
    for verb in (generate, demo, info, export, compress, distill, train, select):
        verb.add(verbs)
    lines = "\n".join(block for page in PAGES for block in blocks(page, "bash"))
    commands = re.findall(r"(?:^|\| )(vispec .*)$", lines, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        options = parser.parse_args(shlex.split(command)[1:])
        for image in getattr(options, "image", None) or []:
            assert (ROOT / image).is_file(), command


def test_every_make_command_of_the_documentation_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"(?:^|`)make (?:[A-Z]+=\S+ )?([a-z-]+)(?=[` ]|$)", text, re.MULTILINE)
        assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_parse_and_links_lead_somewhere(page: str) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?://|#)([^)]+)\)", text):
        file, _, place = link.partition("#")
        found = (ROOT / page).parent / file
        assert found.exists(), link
        if place:
            titles = re.findall(r"^#+ (.*)", found.read_text("utf-8"), re.MULTILINE)
            assert place in {
                re.sub(r"[^a-z0-9 -]", "", t.lower()).replace(" ", "-") for t in titles
            }


def test_folders_of_the_readme_exist() -> None:
    tree = next(block for block in blocks("README.md", "text") if block.startswith("src/vispec/"))
    for folder in re.findall(r"^  ([a-z]+)/", tree, re.MULTILINE):
        assert (ROOT / "src" / "vispec" / folder).is_dir(), folder


SETTINGS = {"The whole": Recipe, "[draft]": DraftRecipe, "[data": Source, "[[stages]]": StageRecipe}


@pytest.mark.parametrize("title", SETTINGS)
def test_every_setting_of_a_recipe_is_documented_with_its_default(title: str) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (part,) = (part for part in text.split("\n## ") if part.strip("`").startswith(title))
    told = {name: said.strip() for name, said in re.findall(r"(?m)^\| `(\w+)` \|(.*?)\|", part)}
    stated: dict[str, Any] = {one.name: one.default for one in fields(SETTINGS[title])}
    assert list(told) == list(stated)
    for name, default in stated.items():
        if isinstance(default, str | int | float):
            assert told[name] == f"`{json.dumps(default)}`", name
        # What is none, or made anew for each, is put into words.
        assert bool(told[name]) == (name not in REQUIRED), name


REQUIRED = ("target", "data", "stages", "path", "name", "losses", "learning_rate")


def test_recipes_of_the_documentation_are_recipes() -> None:
    """Examples of single tables stand in for those of the first, which is whole."""
    whole, *_ = blocks("docs/training.md", "toml")
    stated = tomllib.loads(whole)
    recipe(stated, "docs/training.md")
    for example in blocks("docs/recipes.md", "toml"):
        stages = [{**stated["stages"][0], "losses": {"soft_cross_entropy": 1.0}, "noise": 0.0}]
        recipe({**stated, **tomllib.loads(example), "stages": stages}, "docs/recipes.md")
