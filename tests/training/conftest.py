"""What tests of training share: small photo sets, and few trees to choose from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vispec.decoding.tree import TreeShape
from vispec.training import pipeline


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "TREES", (TreeShape(4, 3, 1), TreeShape(8, 3, 3)))


@pytest.fixture
def two_photo_sets(tmp_path: Path) -> Path:
    """Photographs in the layout of the two sets."""
    lines: dict[str, list[dict[str, object]]] = {"flickr8k": [], "daquar": []}
    for name, found in lines.items():
        (tmp_path / name / "images").mkdir(parents=True)
        for i in range(60):
            image = f"images/{i}.jpg"
            Image.new("RGB", (20, 16), (i, 90, 20)).save(tmp_path / name / image)
            text: dict[str, object] = (
                {"captions": ["a dog runs .", "two dogs ."], "width": 20, "height": 16}
                if name == "flickr8k"
                else {"question": "how many chairs?", "answers": ["2"]}
            )
            found.append({"image": image} | text)
        text_lines = "\n".join(json.dumps(line) for line in found)
        (tmp_path / name / "annotations.jsonl").write_text(text_lines)
    return tmp_path
