"""What is written is whole or not there, and a full disk is said to be one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from full_disk import full
from vispec.writing import former, replace_folder, replacing, saving, write_json


def test_a_full_disk_is_said_by_every_library_alike(tmp_path: Path) -> None:
    path, large = tmp_path / "file", {"a": torch.zeros(100_000)}
    for write in (lambda: save_file(large, path), lambda: torch.save(large, path)):
        with full(), pytest.raises(OSError, match=str(path)), saving(path):
            write()


def test_another_mistake_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="size"), saving(tmp_path / "file"):
        torch.zeros(2) + torch.zeros(3)


def test_a_file_of_json_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})
    with full(), pytest.raises(OSError, match="File too large"):
        write_json(path, {"a": "x" * 100_000})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_workers_may_write_one_file_at_the_same_time(tmp_path: Path) -> None:
    path, large = tmp_path / "facts.json", {"a": list(range(5_000))}
    with ThreadPoolExecutor(8) as workers:
        assert not any(workers.map(lambda _: write_json(path, large), range(64)))
    assert json.loads(path.read_text()) == large
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    kept = tmp_path / "draft"
    for said in ("one", "two"):
        with replacing(kept) as fresh:
            (fresh / "file").write_text(said)
        assert (kept / "file").read_text() == said
        assert not fresh.exists()
        assert not former(kept).exists()


def test_a_folder_is_whole_somewhere_however_often_its_place_is_taken_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, fresh = tmp_path / "draft", tmp_path / "fresh"
    with replacing(kept) as first:
        (first / "file").write_text("one")
    renamed = Path.rename

    def killed(path: Path, to: Path) -> None:
        if path == fresh:
            raise KeyboardInterrupt
        renamed(path, to)

    for _ in range(2):
        fresh.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                replace_folder(fresh, kept)
        assert (former(kept) / "file").read_text() == "one"
    replace_folder(fresh, kept)
    assert kept.is_dir()
    assert not former(kept).exists()


def test_a_folder_that_was_not_finished_takes_no_place(tmp_path: Path) -> None:
    kept = tmp_path / "some" / "draft"
    with replacing(kept) as fresh:
        (fresh / "file").write_text("one")
    with pytest.raises(ZeroDivisionError), replacing(kept) as fresh:
        (fresh / "file").write_text(str(1 // 0))
    assert (kept / "file").read_text() == "one"
    # What is left of it is not taken for a part of the next.
    (fresh / "left").touch()
    with replacing(kept) as fresh:
        assert not list(fresh.iterdir())
