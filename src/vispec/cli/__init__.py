"""The command line: one verb a file, no logic beyond asking the library and showing its answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from vispec.cli import compress, demo, distill, export, generate, info, select, train
from vispec.cli.parser import Parser, version
from vispec.errors import VispecError

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

DESCRIPTION = """\
Lossless speculative decoding for vision-language models: a small draft proposes several
tokens at once, the model itself checks them in one pass, and the text is exactly what the
model alone would have written, only sooner."""

EXAMPLES = """\
start here:
  vispec demo                                     watch it work, no download
  vispec generate --image cat.jpg "What is this?" ask about a picture of yours
  vispec info embedded                            what the built-in pair of models is

vispec VERB --help explains a verb and its options.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: the words behind `vispec`; the process's own by default.

    Returns:
        The exit code: 0; 2 for bad input; 130 after Ctrl-C; 141 when the reader went away.
    """
    parser = Parser(prog="vispec", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"vispec {version()}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (generate, demo, info, export, compress, distill, train, select):
        verb.add(verbs)
    for stream in (sys.stdout, sys.stderr):
        _replace_what_cannot_be_written(stream)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except VispecError as error:
        print(f"vispec: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        again = "; the same command goes on from there" if "resumes" in options else ""
        print(f"\nvispec: interrupted{again}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _replace_what_cannot_be_written(stream: TextIO) -> None:
    """Let a terminal that lacks a character show a question mark instead of stopping."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
