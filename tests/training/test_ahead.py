"""Batches that other processes make."""

from __future__ import annotations

import os

import torch

from vispec.training.ahead import Ahead


def made(step: int) -> tuple[torch.Tensor, int]:
    return torch.full((2,), step), os.getpid()


def test_workers_make_the_same_batches_in_order_from_any_step() -> None:
    ahead = Ahead(made, workers=2)
    for step in (5, 6, 7, 8, 3, 4):
        batch, process = ahead(step)
        assert batch.tolist() == [step, step]
        assert process != os.getpid()


def test_without_workers_this_process_makes_them() -> None:
    assert Ahead(made, workers=0)(4)[1] == os.getpid()
