"""The comparison of drafts: what its arms are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import drafts_compared as compared


def test_adapters_are_trained_alike_in_the_papers_stages() -> None:
    for arm in compared.ARMS.values():
        if arm.group == "adapters":
            assert [stage.name for stage in arm.stages] == ["text", "multimodal"]
            assert [stage.self_fed for stage in arm.stages] == [0, 1]
            assert sum(stage.minutes for stage in arm.stages) == pytest.approx(1)
