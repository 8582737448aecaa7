"""Work folders of long runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from vispec.errors import VispecError
from vispec.runs import claim


def test_a_folder_is_of_one_run(tmp_path: Path) -> None:
    facts = {"weights": {"target": "a"}, "items": [2, 1, 6], "sizes": (1, 2)}
    claim(tmp_path / "new" / "folder", facts)
    claim(tmp_path / "new" / "folder", facts)
    with pytest.raises(VispecError, match=r"another run: items was \[2, 1, 6\], now it is \[3"):
        claim(tmp_path / "new" / "folder", facts | {"items": [3, 1, 9]})


def test_a_fact_that_is_new_or_gone_is_another_run_too(tmp_path: Path) -> None:
    claim(tmp_path, {"items": 2})
    with pytest.raises(VispecError, match=r"seed was None, now it is 7"):
        claim(tmp_path, {"items": 2, "seed": 7})
    with pytest.raises(VispecError, match=r"items was 2, now it is None"):
        claim(tmp_path, {})


def test_of_tables_only_what_differs_is_told(tmp_path: Path) -> None:
    stage = {"name": "text", "steps": 5, "losses": {"kl": 1.0}}
    claim(tmp_path, {"stage": stage, "seed": 0})
    with pytest.raises(VispecError) as error:
        claim(tmp_path, {"stage": stage | {"steps": 6, "losses": {"kl": 2.0}}, "seed": 0})
    told = "stage.steps was 5, now it is 6; stage.losses.kl was 1.0, now it is 2.0; give"
    assert f"is of another run: {told}" in str(error.value)
