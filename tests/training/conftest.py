"""What tests of training share: small photo sets, and few trees to choose from."""

from __future__ import annotations

from pathlib import Path

import pytest

import photo_sets
from vispec.decoding.tree import TreeShape
from vispec.training import pipeline


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SHAPES", (TreeShape(4, 3, 1), TreeShape(8, 3, 3)))


@pytest.fixture
def two_photo_sets(tmp_path: Path) -> Path:
    return photo_sets.write(tmp_path)
