"""Batches made by other processes, before the step that asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from torch.utils.data import DataLoader, Dataset


class Ahead(Dataset[Any]):
    """``batches(step)``, a few steps ahead where it has workers; steps are asked for in order.

    Args:
        batches: a function of the step alone.
        workers: processes that make batches; 0 is none but this one.
    """

    def __init__(self, batches: Callable[[int], Any], workers: int) -> None:
        self.batches, self.workers = batches, workers
        self._next = 0
        self._made: Iterator[Any] | None = None

    def __getitem__(self, step: int) -> Any:
        return self.batches(step)

    def __call__(self, step: int) -> Any:
        if not self.workers:
            return self.batches(step)
        if self._made is None or step != self._next:
            self._made = iter(DataLoader(self, None, sampler=count(step), num_workers=self.workers))
        self._next = step + 1
        return next(self._made)
