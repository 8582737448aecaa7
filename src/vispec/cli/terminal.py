"""What people see: streamed text with its accepted drafts marked, small pictures, short notes.

On a terminal this is rich; in a pipe it is the bare text without a single escape code.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable
from typing import Any, Protocol

from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.text import Text

DRAFTED = Style(color="green", underline=True)
CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))


class Piece(Protocol):
    """A few characters of an answer, and whether a draft had proposed them."""

    @property
    def text(self) -> str: ...

    @property
    def drafted(self) -> bool: ...


class Screen:
    """Standard output, as a terminal or as a pipe.

    Args:
        console: for tests; the process's own standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False)

    @property
    def rich(self) -> bool:
        """Whether a person is looking."""
        return self.console.is_terminal

    def stream(self, pieces: Iterable[Piece]) -> None:
        """Show an answer while it comes, and end its line."""
        for piece in pieces:
            if self.rich:
                # A model may write escape sequences; a terminal must not obey them.
                text = piece.text.translate(CONTROL)
                self.put(Text(text, style=DRAFTED if piece.drafted else ""), end="")
            else:
                self.console.file.write(piece.text)
            self.console.file.flush()
        self.console.file.write("\n")

    def legend(self) -> None:
        """Explain the marks, to people only."""
        if self.rich:
            self.put(
                Text.assemble(
                    ("drafted and accepted", DRAFTED), ("  the target's own token", ""), style="dim"
                )
            )

    def note(self, text: str) -> None:
        """A dim line beside the answer, to people only."""
        if self.rich:
            self.put(Text(text, style="dim"))

    def put(self, what: Any, end: str = "\n") -> None:
        """Print a rich object, lines broken by the terminal alone."""
        self.console.print(what, end=end, soft_wrap=isinstance(what, Text))

    def picture(self, image: Image.Image, columns: int = 48) -> None:
        """A small preview out of half blocks, where the terminal has the colours for it."""
        if not self.rich or self.console.color_system not in ("256", "truecolor"):
            return
        columns = min(columns, self.console.width)
        rows = max(1, round(columns * image.height / image.width / 2))
        small = image.resize((columns, 2 * rows), Image.Resampling.LANCZOS)
        for row in range(rows):
            line = Text()
            for column in range(columns):
                upper, lower = (_colour(small, column, 2 * row + half) for half in (0, 1))
                line.append("▀", f"{upper} on {lower}")
            self.put(line)


def _colour(image: Image.Image, x: int, y: int) -> str:
    red, green, blue = image.getpixel((x, y))  # type: ignore[misc]
    return f"#{red:02x}{green:02x}{blue:02x}"


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice off the screen."""
    # transformers imports torchao where it is installed, which tells what of it fits no processor.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Norms in float32 of what autocast made in bfloat16 are as they should be.
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def warn(text: str) -> None:
    """A line on standard error."""
    print(f"vispec: {text}", file=sys.stderr)
