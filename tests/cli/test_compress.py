"""`vispec compress` writes a smaller draft that fits and says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import QUESTION, Pair, Run


@pytest.mark.parametrize("form", [("int8",), ("low_rank", "--rank", "6")])
def test_a_smaller_draft_fits_and_says_the_same(
    run: Run, pair: Pair, tmp_path: Path, form: tuple[str, ...]
) -> None:
    ran = run("compress", pair.draft, tmp_path / "out", "--form", *form)
    assert ran.code == 0
    assert "MB instead of" in ran.out
    assert run("info", tmp_path / "out", "--target", pair.target).code == 0
    command = ("generate", "--target", pair.target, "-n", "12", "--temperature", "0", QUESTION)
    plain, small = run(*command, "--plain"), run(*command, "--draft", tmp_path / "out")
    assert small.out == plain.out


def test_what_cannot_be_is_named(run: Run, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    for place, form, word in (
        (tmp_path / "out", ("low_rank",), "needs --rank"),
        (tmp_path / "out", ("low_rank", "--rank", "0"), "rank is 0"),
        (tmp_path / "file", ("int8",), "cannot be written to"),
        (pair.draft, ("int8",), "own folder"),
    ):
        ran = run("compress", pair.draft, place, "--form", *form)
        assert ran.code == 2
        assert word in ran.err
