"""The benchmarks of drafts run from their questions to the page, at toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import adapted_draft
import drafts_compared
import drafts_report
import photo_sets
import shared_adapter
import training_costs
from vispec.checkpoints.files import fingerprint, locate
from vispec.decoding.tree import TreeShape
from vispec.training.recipes.embedded_questions import groups, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Questions, a folder to work in, and one for results."""
    folder = tmp_path_factory.mktemp("drafts")
    photographs = photo_sets.write(folder / "photographs")
    asked = groups(photographs, scenes=9, photos=4, texts=4, heldout=6, timed=4)
    write(asked, folder / "questions")
    (folder / "results").mkdir()
    return {name: folder / name for name in ("questions", "work", "results")}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (drafts_compared, shared_adapter):
        monkeypatch.setattr(module, "LONGEST", 8)
    monkeypatch.setattr(drafts_compared, "CANDIDATES", (TreeShape.chain(2),))


def options(place: dict[str, Path], result: str, **more: Any) -> list[str]:
    given = {
        "questions": place["questions"],
        "work": place["work"],
        "out": place["results"] / f"{result}.json",
        **more,
    }
    return [str(part) for name, value in given.items() for part in (f"--{name}", value)]


def test_arms_are_trained_in_parts_measured_and_put_into_tables(place: dict[str, Path]) -> None:
    arms = ["--arms", "query", "pooling", drafts_compared.ALONE, "text alone", "none"]
    arms += ["none, half the rate", "elastic"]
    command = [*options(place, "drafts", minutes=0.02, leaders=1), *arms]
    drafts_compared.main(command)
    found = drafts_report.sections(place["results"])
    for form in ("query, int8", "query, rank 48"):
        assert f"| {form} |" in found["drafts-forms"]
    assert "| selector |" in found["drafts-chosen"]
    assert "elastic (SpecVLM) takes: " in found["drafts-chosen"]
    assert "| none (EAGLE) | " in found["drafts-rates"]
    assert "half the rate" not in found["drafts-adapters"]
    assert "text alone, no image tokens (text-only)" in found["drafts-training"]
    drafts_report.draw(place["results"])
    assert drafts_report.drawn(place["results"])
    refuse_unknown_weights(place["results"] / "drafts.json")


def refuse_unknown_weights(result: Path) -> None:
    """Fail unless a result says which models it is about."""
    stated = json.loads(result.read_text())["weights"]
    assert stated["target"] == fingerprint(locate("embedded"))
    assert set(stated) <= {"target", "draft"}


def test_two_targets_share_an_adapter(place: dict[str, Path]) -> None:
    more = {"minutes": 0.02, "small-minutes": 0.02, "learnt": 6, "timed": 2}
    shared = place | {"work": place["work"] / "shared"}
    shared_adapter.main(options(shared, "shared", **more))
    assert drafts_report.sections(place["results"])["drafts-shared"].count("| shared |") == 2
    refuse_unknown_weights(place["results"] / "shared.json")


def test_a_former_draft_is_adapted(place: dict[str, Path]) -> None:
    former = Path(adapted_draft.__file__).parent / "drafts" / "eagle-text"
    adapted_draft.main(options(place, "adapted", minutes=0.02, former=former))
    assert "| from nothing |" in drafts_report.sections(place["results"])["drafts-adapted"]
    refuse_unknown_weights(place["results"] / "adapted.json")
    with pytest.raises(SystemExit, match="no EAGLE draft"):
        adapted_draft.main(options(place, "adapted", former=locate("embedded", "draft")))


def test_training_is_timed(place: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"small": (16, 2, 144)}
    monkeypatch.setattr(training_costs, "SIZES", {"embedded": size["small"], "7B": size["small"]})
    given = options(place, "training-costs", seconds=0.1, repeats=1, answers=6)[2:]
    training_costs.main(given)
    found = drafts_report.sections(place["results"])
    assert found["training-costs"].count("\n| ") >= 4
    assert found["adapter-costs"].count("| elastic, where it takes ") == 5
    refuse_unknown_weights(place["results"] / "training-costs.json")
