"""Batches made by other processes, before the step that asks for them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch.utils.data import DataLoader, Dataset

from vispec.errors import SettingsError


class Ahead:
    """``batches(step)``, a few steps ahead where it has workers; steps are asked for in order.

    Args:
        batches: a function of the step alone.
        workers: processes that make batches; 0 is none but this one.

    Raises:
        SettingsError: if there are to be workers where processes cannot be forked.
    """

    def __init__(self, batches: Callable[[int], Any], workers: int) -> None:
        self.batches, self.workers = batches, workers
        if workers and "fork" not in multiprocessing.get_all_start_methods():
            raise SettingsError(
                "this system cannot fork the processes that were to make batches",
                "Give --workers 0.",
            )
        self._next = 0
        self._made: Iterator[Any] | None = None

    def __call__(self, step: int) -> Any:
        if not self.workers:
            return self.batches(step)
        if self._made is None or step != self._next:
            # Forked: what is open and known here is so there, and nothing has to be pickled.
            loader = DataLoader(
                _Made(self.batches),
                None,
                sampler=count(step),
                num_workers=self.workers,
                multiprocessing_context="fork",
            )
            self._made = iter(loader)
        self._next = step + 1
        return next(self._made)


@dataclass(frozen=True)
class _Made(Dataset[Any]):
    batches: Callable[[int], Any]

    def __getitem__(self, step: int) -> Any:
        return self.batches(step)
