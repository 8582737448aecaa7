"""The comparison of drafts: what its arms are, and that nothing measured is taken for another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import talking
import tiny
from vispec.decoding.engine import Engine
from vispec.training.distill import Question

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import drafts_compared as compared


def test_adapters_are_trained_alike_in_the_papers_stages() -> None:
    for arm in compared.ARMS.values():
        if arm.group == "adapters":
            assert [stage.name for stage in arm.stages] == ["text", "multimodal"]
            assert [stage.self_fed for stage in arm.stages] == [0, 1]
            assert sum(stage.minutes for stage in arm.stages) == pytest.approx(1)


def test_what_was_measured_is_kept_and_what_changed_is_measured_again(tmp_path: Path) -> None:
    target, path = talking.target(), tmp_path / "measured.json"
    draft = tiny.draft(queries=None)
    ways = {"plain": Engine(target), "draft": Engine(target, draft, tree=compared.TREE)}
    asked = [Question(f"q{i}", "the cat", [talking.picture(i)]) for i in range(3)]

    def answered(counted: list[int]) -> dict[str, compared.Measured]:
        def looking(*given: object, **options: object) -> object:
            counted.append(1)
            return generate(*given, **options)  # type: ignore[arg-type]

        generate = ways["draft"].generate
        ways["draft"].generate = looking  # type: ignore[assignment, method-assign]
        try:
            return compared.ask(ways, asked, path)
        finally:
            ways["draft"].generate = generate  # type: ignore[method-assign]

    counts: list[list[int]] = [[], [], [], []]
    first = answered(counts[0])
    assert first["draft"]["same_text"] == [True] * 3
    assert answered(counts[1]) == first
    # An interrupted run goes on; the first question is asked once more, to warm up.
    kept = json.loads(path.read_text())
    for way in kept.values():
        way["measured"] = {name: numbers[:2] for name, numbers in way["measured"].items()}
    path.write_text(json.dumps(kept))
    assert answered(counts[2])["draft"]["target_passes"] == first["draft"]["target_passes"]
    with torch.no_grad():
        next(draft.parameters()).mul_(1.01)
    answered(counts[3])
    assert [len(one) for one in counts] == [4, 1, 2, 4]
