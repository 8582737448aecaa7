"""The table of families says what the tests said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import conformance
import report

SKIPPED = '<skipped message="it takes no videos"/>'
CASES = [
    ("test_greedy_text_is_generates_own_in_every_tree_and_batch[a, one-nothing]", ""),
    ("test_greedy_text_is_generates_own_in_every_tree_and_batch[a, one-an image]", "<failure/>"),
    ("test_greedy_text_is_generates_own_in_every_tree_and_batch[a, one-images]", ""),
    ("test_greedy_text_is_generates_own_in_every_tree_and_batch[a, one-videos]", SKIPPED),
    ("test_seeded_sampling_is_the_plain_loops[a, one]", ""),
    ("test_a_batch_inside_generate_is_generates_own[a, one]", "<error/>"),
    ("test_every_kind_of_draft_leaves_the_text_as_it_is[a, one-EAGLE]", ""),
    ("test_every_kind_of_draft_leaves_the_text_as_it_is[a, one-EAGLE-3]", "<failure/>"),
    ("test_every_kind_of_draft_leaves_the_text_as_it_is[a, one-ViSpec]", ""),
    ("test_greedy_text_is_generates_own_in_every_tree_and_batch[b-nothing]", ""),
    ("test_seeded_sampling_is_the_plain_loops[b]", '<skipped message="no time"/>'),
    ("test_every_kind_of_draft_leaves_the_text_as_it_is[b-EAGLE]", ""),
    ("test_every_kind_of_draft_reads_what_the_model_saw[b-EAGLE]", "<failure/>"),
    ("test_something_else[b]", "<failure/>"),
]


@pytest.fixture
def xml(tmp_path: Path) -> Path:
    path = tmp_path / "tests.xml"
    cases = "".join(f'<testcase name="{name}">{inner}</testcase>' for name, inner in CASES)
    path.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    return path


def test_a_question_is_answered_by_its_tests_alone(xml: Path) -> None:
    table = conformance.table(conformance.outcomes(xml))
    assert table["a, one"] == {
        "greedy": "no", "sampled": "yes", "several images": "yes", "video": "none",
        "batch": "no", "ViSpec": "yes", "EAGLE": "yes", "EAGLE-3": "no",
    }  # fmt: skip
    assert table["b"] == {
        "greedy": "yes", "sampled": "no", "several images": "unasked", "video": "unasked",
        "batch": "unasked", "ViSpec": "unasked", "EAGLE": "no", "EAGLE-3": "unasked",
    }  # fmt: skip


def test_what_fails_is_written_and_told(xml: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="a, one: greedy"):
        conformance.main([str(xml), "--out", str(out)])
    lines = report.conformance(json.loads(out.read_text())).splitlines()
    assert lines[2] == "| a, one | **no** | yes | yes | – | **no** | yes | yes | **no** |"
    assert len(lines) == 4


def test_a_report_without_families_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.xml"
    empty.write_text("<testsuites/>")
    with pytest.raises(SystemExit, match="no test of a family"):
        conformance.main([str(empty), "--out", str(tmp_path / "out.json")])
