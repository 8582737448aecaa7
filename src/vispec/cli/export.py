"""`vispec export`: a draft in the format of another engine."""

from __future__ import annotations

import argparse
from typing import Any

from rich.text import Text

from vispec.cli import options as shared
from vispec.cli.terminal import Screen, quiet_libraries
from vispec.errors import VispecError

DESCRIPTION = """\
Write a draft in the format that another engine loads. What a format cannot represent is refused
with the reason; --closest writes what comes closest instead, and says what was left out."""

EXAMPLES = """\
examples:
  vispec export ./my-draft --format eagle3 ./out                 for SGLang and the EAGLE code
  vispec export ./my-draft --format speculators ./out --target ./my-llava      for vLLM
  vispec export embedded --format eagle --closest ./out          without its vision adapter
"""


def add(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "export",
        help="write a draft for another engine",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("draft", help="'embedded', a folder, or a hub name")
    parser.add_argument("folder", help="where to write; is made where it does not exist")
    parser.add_argument(
        "--format",
        required=True,
        choices=("vispec", "eagle", "eagle3", "medusa", "dflash", "dspark", "speculators"),
        help="what to write",
    )
    parser.add_argument("--target", metavar="MODEL", help="the target that the files should name")
    parser.add_argument(
        "--closest", action="store_true", help="leave out what the format cannot represent"
    )
    shared.add_trust(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, write, say what is missing."""
    quiet_libraries()
    from vispec.checkpoints.export import carry_licence, export

    place, facts, draft = shared.rewritten(options)
    extra = {**facts, **({"target": options.target} if options.target else {})}
    if options.format == "speculators":
        if "target" not in extra:
            raise VispecError("the speculators format names the draft's target: give --target")
        extra["target_architectures"] = architectures(extra["target"])
    if options.target:
        refuse_misfits(options)
    with shared.written(options.folder):
        left = export(draft, options.folder, options.format, closest=options.closest, **extra)
        terms = carry_licence(place, options.folder)
    screen = Screen()
    screen.put(Text(f"wrote {options.folder} in the {options.format} format"))
    if terms:
        screen.put(Text(f"  licence: {terms}"))
    for sentence in left:
        screen.put(Text(f"  {sentence}"))
    return 0


def refuse_misfits(options: argparse.Namespace) -> None:
    """Raise what differs between the draft and its target, where that is within reach."""
    from vispec.checkpoints.files import locate, read_config
    from vispec.checkpoints.summary import mismatches
    from vispec.errors import CheckpointError, DraftMismatchError

    try:
        read_config(locate(options.target))
    except CheckpointError:
        return
    misfits = mismatches(options.draft, options.target, pickled=options.allow_pickle)
    if misfits:
        raise DraftMismatchError(options.draft, options.target, misfits)


def architectures(target: str) -> list[str]:
    """The classes that a target's configuration names; none where it is out of reach."""
    from vispec.checkpoints.files import locate, read_config
    from vispec.errors import CheckpointError

    try:
        return list(read_config(locate(target)).get("architectures") or ())
    except CheckpointError:
        return []
