"""How far long work is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY_S = 30.0
"""Between lines where there is no terminal."""


class Progress:
    """Counts things done, and something made on the way.

    Args:
        what: is done.
        total: how many of it.
        made: what is counted beside, such as tokens.
    """

    def __init__(self, what: str, total: int, made: str) -> None:
        self.what, self.total, self.made = what, total, made
        self.done = self.count = 0
        self._begun = self._told = time.monotonic()
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            self._bar = Bar(
                TextColumn(what),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(what, total=total, rate="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, done: int, count: int) -> None:
        """So many more were done, and so much made."""
        self.done, self.count = self.done + done, self.count + count
        now = time.monotonic()
        spent = max(now - self._begun, 1e-9)
        rate = f"{self.count / spent:.0f} {self.made}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif now - self._told >= EVERY_S or self.done >= self.total:
            self._told = now
            left = spent / self.done * (self.total - self.done)
            print(
                f"{self.what} {self.done}/{self.total}, {rate}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
