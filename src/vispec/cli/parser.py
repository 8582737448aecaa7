"""Help that teaches and complaints that are one line long."""

from __future__ import annotations

import argparse
import shutil
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from vispec.decoding.tree import TreeShape


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keep the line breaks of descriptions and examples; leave room for long option names."""

    def __init__(self, prog: str, **settings: Any) -> None:
        width = min(shutil.get_terminal_size().columns, 100) - 2
        super().__init__(prog, **settings | {"max_help_position": 30, "width": width})


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one line instead of its whole usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, formatter_class=_Formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Name the mistake and where help is; exit code 2."""
        self.exit(2, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def version() -> str:
    """The installed version, also when the package runs from its source folder alone."""
    try:
        return metadata.version("vispec")
    except metadata.PackageNotFoundError:
        return "(running from source)"


def tree_shape(text: str) -> TreeShape:
    """`SIZE,DEPTH,WIDTH`, or the length of a chain."""
    from vispec.decoding.tree import TreeShape

    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise argparse.ArgumentTypeError(
            f"'{text}' is no tree; write SIZE,DEPTH,WIDTH, such as 30,4,8, or a chain's length"
        )
    try:
        return TreeShape(*numbers) if len(numbers) == 3 else TreeShape.chain(numbers[0])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
