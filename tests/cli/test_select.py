"""`vispec select` puts drafts that differ in their adapters together into one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
    vispec_format.write(body.to(torch.bfloat16), folder)
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
    (drafts[0] / "LICENSE").write_text("mine")
    command = ("select", *drafts, "--target", pair.target, *kinds, "-n", "12")
    ran = run(*command, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    rows = [line for line in ran.out.splitlines() if line.split()[:1] in (["bright"], ["dark"])]
    assert len(rows) == 2
    found = vispec.from_pretrained(tmp_path / "out" / "draft")
    assert isinstance(found.adapter, SelectorAdapter)
    assert found.adapter.kinds == ["bright", "dark"]
    # The one that is marked; of equal ones the first.
    for row, best in zip(rows, found.adapter.best.tolist(), strict=True):
        cells = re.findall(r"\d\.\d\d(?: \*)?", row)
        assert len(cells) == 2
        assert best == [cell.endswith("*") for cell in cells].index(True)
    card = (tmp_path / "out" / "draft" / "README.md").read_text()
    assert "bright (" in card
    assert "license: mine" in card
    assert (tmp_path / "out" / "draft" / "LICENSE").read_text() == "mine"
    one = vispec.from_pretrained(drafts[0]).state_dict()
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in one.items())
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
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
    other = run(*command, "--out", tmp_path / "out", "--limit", "2")
    assert other.code == 2
    assert "is of another run: kinds" in other.err


def test_the_best_of_every_kind_is_marked_and_taken(
    run: Run, pair: Pair, kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random drafts accept alike; here each is the better one for something."""
    lengths = {("bright", 1): 1.25, ("bright", 3): 2.5, ("dark", 1): 1.75, ("dark", 3): 1.5}

    def told(draft: Any, target: Any, samples: Any, positions: int) -> dict[str, float]:
        kind = samples[0].key.split("-")[0]
        return {"acceptance_length": lengths[kind, draft.adapter.keep]}

    monkeypatch.setattr("vispec.training.selection.judged", told)
    drafts = [written(tmp_path / f"keep-{keep}", pair, keep) for keep in (1, 3)]
    ran = run("select", *drafts, "--target", pair.target, *kinds, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    rows = {words[0]: words[1:] for line in ran.out.splitlines() if (words := line.split())}
    assert rows["bright"] == ["1.25", "2.50", "*"]
    assert rows["dark"] == ["1.75", "*", "1.50"]
    found = vispec.from_pretrained(tmp_path / "out" / "draft")
    assert isinstance(found.adapter, SelectorAdapter)
    assert found.adapter.best.tolist() == [1, 0]
    card = (tmp_path / "out" / "draft" / "README.md").read_text()
    assert f"bright ({drafts[1]}, of 3 questions), dark ({drafts[0]}, of 3" in card


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
    own = written(tmp_path / "out" / "draft", pair, 3)
    ran = run("select", one, own, "--target", pair.target, "--out", tmp_path / "out", *kinds)
    assert ran.code == 2
    assert "own folder" in ran.err


def test_words_are_no_kind(run: Run, pair: Pair, tmp_path: Path) -> None:
    drafts = [written(tmp_path / f"keep-{keep}", pair, keep) for keep in (1, 3)]
    file = tmp_path / "words.jsonl"
    file.write_text('{"prompt": "the cat"}\n')
    command = ("select", *drafts, "--target", pair.target, "--out", tmp_path / "out", "-n", "6")
    ran = run(*command, "--kind", f"words={file}")
    assert ran.code == 2
    assert "no image among the samples of 'words'" in ran.err
