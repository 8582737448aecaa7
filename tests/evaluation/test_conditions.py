"""Results say what they depend on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vispec.evaluation import conditions as conditions_module
from vispec.evaluation.conditions import commit, conditions, source
from vispec.training import provenance


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


def test_code_has_another_digest_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions_module, "_ROOT", tmp_path)
    (tmp_path / "src" / "deep").mkdir(parents=True)
    file = tmp_path / "src" / "deep" / "one.py"
    seen = []
    for text in ("a = 1", "a = 2", "a = 1"):
        file.write_text(text)
        (tmp_path / "src" / "notes.txt").write_text(text)
        seen.append((source("src"), source("src/deep/one.py"), source("src", "no/such/folder")))
    assert seen[0] == seen[2]
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]
    assert seen[0][2] == seen[0][0]
    file.rename(tmp_path / "src" / "deep" / "two.py")
    assert source("src") != seen[0][0]
    assert source("no/such/folder") == {}


def test_the_checkout_has_code() -> None:
    assert source("src", "tests").keys() == {"src", "tests"}


def test_the_commit_is_gits_and_says_whether_code_differs_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> str:
        named = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *words]
        return subprocess.run(named, capture_output=True, text=True, check=True).stdout

    file = tmp_path / "src" / "vispec" / "training" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("a = 1")
    (tmp_path / "notes.txt").write_text("one")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert commit() == ""
    run("init", "-q")
    run("add", ".")
    run("commit", "-q", "-m", "first")
    head = run("rev-parse", "HEAD")[:12]
    (tmp_path / "notes.txt").write_text("two")
    assert commit() == head
    file.write_text("a = 2")
    assert commit() == f"{head} changed"
