"""`vispec select` puts drafts that differ in their adapters together into one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import talking
import vispec
from command_line import QUESTION, Pair, Run
from vispec.adapters import SelectorAdapter, build
from vispec.checkpoints import vispec as vispec_format
from vispec.drafts import EagleConfig, EagleDraft


def written(folder: Path, pair: Pair, keep: int, seed: int = 1) -> Path:
    """A draft that pools images, of the same body whatever is kept of them."""
    torch.manual_seed(seed)
    body = EagleDraft(EagleConfig(pair.hidden, 64, 4, 2, pair.vocabulary))
    body.take(build({"kind": "pooling", "keep": keep}, pair.hidden))
    vispec_format.write(body, folder)
    return folder


@pytest.fixture
def kinds(tmp_path: Path) -> list[str]:
    """Two kinds of pictures, and questions about them."""
    given = []
    for name in ("bright", "dark"):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(3):
            picture = talking.picture(i)
            picture.point(lambda v, name=name: v // 4 + 190 * (name == "bright")).save(
                folder / f"{i}.png"
            )
        (folder / "prompts.txt").write_text("the cat\n")
        given += ["--kind", f"{name}={folder}"]
    return given


def test_drafts_become_one_that_is_used(
    run: Run, pair: Pair, kinds: list[str], tmp_path: Path
) -> None:
    drafts = [written(tmp_path / f"keep-{keep}", pair, keep) for keep in (1, 3)]
    command = ("select", *drafts, "--target", pair.target, *kinds, "-n", "12")
    ran = run(*command, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    rows = [line for line in ran.out.splitlines() if line.split()[:1] in (["bright"], ["dark"])]
    assert len(rows) == 2
    assert all("*" in row for row in rows)
    found = vispec.from_pretrained(tmp_path / "out" / "draft")
    assert isinstance(found.adapter, SelectorAdapter)
    assert found.adapter.kinds == ["bright", "dark"]
    one = vispec.from_pretrained(drafts[0]).state_dict()
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in one.items())
    # What it says is what the target says.
    picture = tmp_path / "dark" / "0.png"
    asked = ("generate", "--target", pair.target, "-n", "12", "--temperature", "0")
    asked += ("--image", picture, QUESTION)
    plain, drafted = run(*asked, "--plain"), run(*asked, "--draft", tmp_path / "out" / "draft")
    assert drafted.code == 0, drafted.err
    assert drafted.out == plain.out
    # Again, from the answers that are there.
    answers = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert run(*command, "--out", tmp_path / "out").code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == answers


def test_what_cannot_be_put_together_is_told(
    run: Run, pair: Pair, kinds: list[str], tmp_path: Path
) -> None:
    one = written(tmp_path / "one", pair, 1)
    for others, more, word in (
        ((), kinds, "there is one draft"),
        ((written(tmp_path / "other", pair, 3, seed=2),), kinds, "more than their adapters"),
        (("lookup",), kinds, "'lookup' has no adapter"),
        ((one,), ("--kind", "nothing"), "'nothing' is no NAME=QUESTIONS"),
        ((one,), ("--kind", f"../a={tmp_path}"), "is no NAME=QUESTIONS"),
        ((one,), (*kinds, *kinds[:2]), "kinds share a name"),
        ((one,), ("--kind", f"a={tmp_path / 'none'}"), "none"),
    ):
        command = ("select", one, *others, "--target", pair.target, "--out", tmp_path / "out")
        ran = run(*command, *more)
        assert ran.code == 2, word
        assert word in ran.err
        assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()
