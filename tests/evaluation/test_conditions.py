"""Results say what they depend on."""

from __future__ import annotations

import subprocess

import pytest

from vispec.evaluation.conditions import commit, conditions, source


def test_settings_that_change_the_speed_are_told_and_folders_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_FREEZING", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")
    found = conditions()
    assert (
        found["settings"].items()
        >= {"TORCHINDUCTOR_FREEZING": "1", "GOMP_SPINCOUNT": "20000"}.items()
    )
    assert "TORCHINDUCTOR_CACHE_DIR" not in found["settings"]
    assert found["torch"]


def test_what_git_does_not_know_has_no_state() -> None:
    assert source("no/such/folder") == {}
    assert set(source("src", "no/such/folder")) <= {"src"}


def test_the_commit_is_gits() -> None:
    told = subprocess.run(["git", "log", "-1", "--format=%H"], capture_output=True, text=True)
    assert told.stdout.startswith(commit())
