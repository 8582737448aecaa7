"""What the documentation says to type is understood, and what it points at exists."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from vispec.cli import compress, demo, distill, export, generate, info, select, train
from vispec.cli.parser import Parser

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/checkpoints.md",
    "docs/new-family.md",
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
