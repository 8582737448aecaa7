"""What the tests of the command line share: a pair's folders, a run's outcome, drafts to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vispec.adapters import QueryAdapter
from vispec.checkpoints import vispec as vispec_format
from vispec.drafts import EagleConfig, EagleDraft

QUESTION = "what is this ?"


@dataclass(frozen=True)
class Pair:
    """Folders of a target and a draft that fits it."""

    target: Path
    draft: Path
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class Ran:
    """What a command line did."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def write_draft(folder: Path, hidden: int, vocabulary: int) -> Path:
    torch.manual_seed(1)
    config = EagleConfig(hidden, 64, 4, 2, vocabulary)
    vispec_format.write(EagleDraft(config, QueryAdapter(hidden, 4, 3)), folder)
    return folder
