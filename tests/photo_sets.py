"""Photographs in the layout of the two sets that the embedded pair learns from."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image


def write(folder: Path, count: int = 60) -> Path:
    """Some of each; of sixty, two are held out."""
    lines: dict[str, list[dict[str, object]]] = {"flickr8k": [], "daquar": []}
    for name, found in lines.items():
        (folder / name / "images").mkdir(parents=True)
        for i in range(count):
            image = f"images/{i}.jpg"
            Image.new("RGB", (20, 16), (i, 90, 20)).save(folder / name / image)
            text: dict[str, object] = (
                {"captions": ["a dog runs .", "two dogs ."], "width": 20, "height": 16}
                if name == "flickr8k"
                else {"question": "how many chairs?", "answers": ["2"]}
            )
            found.append({"image": image} | text)
        text_lines = "\n".join(json.dumps(line) for line in found)
        (folder / name / "annotations.jsonl").write_text(text_lines)
    return folder
