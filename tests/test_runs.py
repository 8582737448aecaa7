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
