"""`vispec compress`: a smaller form of a draft."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.text import Text

from vispec.cli import options as shared
from vispec.cli.terminal import Screen, quiet_libraries
from vispec.errors import SettingsError

DESCRIPTION = """\
Write a smaller form of a draft: matrices of int8 with a scale for each output, or the closest
matrices of a low rank. The text stays the target's own; measure what the form costs in acceptance.
Only vispec reads such drafts."""

EXAMPLES = """\
examples:
  vispec compress ./my-draft ./out --form int8
  vispec compress ./my-draft ./out --form low_rank --rank 512
"""


def add(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "compress", help="make a draft smaller", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("draft", help="'embedded', a folder, or a hub name")
    parser.add_argument("folder", help="where to write; is made where it does not exist")
    parser.add_argument("--form", required=True, choices=("int8", "low_rank"), help="what to write")
    parser.add_argument("--rank", type=int, metavar="R", help="of low_rank, which needs it")
    shared.add_trust(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, compress, write, say how much smaller it is."""
    quiet_libraries()
    from vispec.checkpoints.export import carry_licence, write
    from vispec.drafts.compression import compress

    if options.form == "low_rank" and options.rank is None:
        raise SettingsError("low_rank needs --rank, of a matrix's smaller side a quarter or so")
    place, facts, draft = shared.rewritten(options)
    small = compress(draft, options.form, options.rank or 0)
    with shared.written(options.folder):
        write(small, options.folder, **facts)
        carry_licence(place, options.folder)
    before, after = (
        sum(p.numel() * p.element_size() for p in d.parameters()) for d in (draft, small)
    )
    said = f"wrote {Path(options.folder)}: {after / 1e6:.3g} MB instead of {before / 1e6:.3g}"
    Screen().put(Text(said))
    return 0
