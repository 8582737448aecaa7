"""`--help` teaches: what a verb does, every option in words, and commands to copy."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys

import pytest

import vispec
from command_line import Run
from vispec.cli import EXAMPLES, demo, generate, info
from vispec.cli.parser import Parser

VERBS = {"generate": generate, "demo": demo, "info": info}


def parser_of(verb: str) -> argparse.ArgumentParser:
    verbs = Parser(prog="vispec").add_subparsers()
    VERBS[verb].add(verbs)
    found: argparse.ArgumentParser = verbs.choices[verb]
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str) -> None:
    for action in parser_of(verb)._actions:
        assert action.help, f"{verb} {action.option_strings or action.dest}"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_the_screen_and_leaves_with_0(run: Run, verb: str) -> None:
    ran = run(*([verb] if verb else []), "--help")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 100


def test_every_example_in_the_help_parses() -> None:
    examples = EXAMPLES + generate.EXAMPLES + info.EXAMPLES
    commands = re.findall(r"vispec (generate|info|demo)\b(.*)", examples)
    assert len(commands) >= 10
    for verb, words in commands:
        # A remark stands behind at least three spaces.
        parser_of(verb).parse_args(shlex.split(re.split(r"\s{3,}|(?<=\")\s(?=[a-z])", words)[0]))


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version").out == f"vispec {vispec.__version__}\n"


@pytest.mark.slow
def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, vispec.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
