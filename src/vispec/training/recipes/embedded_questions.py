"""What the embedded target is asked: about rendered scenes, photographs, and nothing to look at.

    python -m vispec.training.recipes.embedded_questions --data DIR --out questions

leaves a file of questions for each of what drafts learn from (`text` and `multimodal`), what they
are judged by meanwhile (`heldout`) and what they are timed on in the end (`timed`), and a folder of
pictures: what `vispec train embedded` reads, and anything else that trains drafts.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

from PIL import Image

from vispec.training import photos, scenes
from vispec.training.distill import Question
from vispec.training.progress import Progress

EVALUATED = 100
"""Held-out photographs that the pair is evaluated on."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the questions")
    parser.add_argument("--scenes", type=int, default=9000, help="questions about scenes (9000)")
    parser.add_argument("--photos", type=int, default=8000, help="about photographs (8000)")
    parser.add_argument("--texts", type=int, default=4000, help="without a picture (4000)")
    parser.add_argument("--heldout", type=int, default=192, help="to judge training by (192)")
    parser.add_argument("--timed", type=int, default=240, help="to be timed on (240)")
    options = parser.parse_args(argv)
    write(
        groups(
            options.data,
            scenes=options.scenes,
            photos=options.photos,
            texts=options.texts,
            heldout=options.heldout,
            timed=options.timed,
        ),
        options.out,
    )


def write(asked: Mapping[str, Sequence[Question]], out: Path) -> None:
    """A file of questions for each group, and the pictures that they are about."""
    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    with Progress("questions", sum(map(len, asked.values())), "pictures") as progress:
        for name, group in asked.items():
            rows = []
            for question in group:
                row: dict[str, object] = {
                    "id": question.key,
                    "prompt": question.prompt,
                    "temperature": question.temperature,
                }
                if question.images:
                    (picture,) = question.shown()
                    assert isinstance(picture, Image.Image)
                    path = pictures / f"{question.key}.png"
                    picture.save(path, compress_level=1)
                    row["image"] = str(path.relative_to(out))
                progress.add(1, len(question.images))
                rows.append(json.dumps(row) + "\n")
            (out / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


def scene_questions(
    count: int, part: str, first: int, temperatures: Sequence[float]
) -> list[Question]:
    """Questions about rendered scenes of one part of the split, all tasks in turn."""
    found: list[Question] = []
    for seed in islice(scenes.seeds(part, first), count):
        turn, place = divmod(len(found), len(scenes.TASKS))
        task = scenes.TASKS[place]
        sample = scenes.scene(seed, task)
        found.append(
            Question(
                f"scene-{seed}-{task}",
                sample.question,
                [partial(_render, seed, task)],
                # Each task gets every temperature.
                temperatures[turn % len(temperatures)],
            )
        )
    return found


def photo_questions(
    data: Path, count: int, part: str, temperatures: Sequence[float], skip: int = 0
) -> list[Question]:
    """Questions about photographs, both sets in turn.

    Args:
        skip: captioned ones that are not asked about, where there are more.
    """
    sets = [photos.load(data, name, part) for name in ("flickr8k", "daquar")]
    sets[0] = sets[0][skip:] or sets[0]
    found: list[Question] = []
    for index in range(count):
        # Captions are the longer texts and there are more of those photographs.
        photo_set = sets[index % 4 == 3]
        photo = photo_set[index % len(photo_set)]
        turn = photo.turns[index % len(photo.turns)]
        found.append(
            Question(
                f"photo-{index}-{photo.path.stem}",
                turn.question,
                [partial(photo.open, scenes.SIZE)],
                temperatures[index % len(temperatures)],
            )
        )
    return found


def text_questions(questions: Sequence[Question], count: int, seed: int = 0) -> list[Question]:
    """Some of the questions with nothing to look at: the target's language alone."""
    some = Random(seed).sample(questions, min(count, len(questions)))
    return [Question(f"text-{q.key}", q.prompt, temperature=1.0) for q in some]


def groups(
    data: Path, *, scenes: int, photos: int, texts: int, heldout: int, timed: int = 0
) -> dict[str, list[Question]]:
    """All that is asked, by what it is for.

    Args:
        data: folder with the photographs.
        scenes, photos, texts: how many questions to learn from.
        heldout: to judge training by; a third of them is about photographs, none of which are
            among those that `vispec.evaluation.embedded` asks about.
        timed: to be timed on, about scenes and photographs that nothing was judged by; a quarter of
            them is about photographs.
    """
    mixed = (0.0, 0.0, 1.0)
    asked = scene_questions(scenes, "train", 5_000_000, mixed)
    asked += photo_questions(data, photos, "train", mixed)
    unseen = scene_questions(heldout * 2 // 3, "heldout", 9_000_000, (0.0,))
    unseen += photo_questions(data, heldout // 3, "heldout", (0.0,), skip=EVALUATED)
    others = scene_questions(timed * 3 // 4, "heldout", 9_500_000, (0.0,))
    # There are fewer photographs than questions about them.
    judged = {picture_of(one.key) for one in unseen}
    pictures = photo_questions(data, 1000, "heldout", (0.0,), skip=EVALUATED) if timed else []
    others += [one for one in pictures if picture_of(one.key) not in judged][: timed // 4]
    return {
        "heldout": unseen,
        "timed": others,
        "text": text_questions(asked, texts),
        "multimodal": asked,
    }


def _render(seed: int, task: str) -> Image.Image:
    return scenes.scene(seed, task).image


_KEY = re.compile(r"scene-(?P<seed>\d+)-(?P<task>\w+)$|photo-\d+-(?P<photo>.+)$")


def task_of(key: str) -> str:
    """The task of a question: keys end with scene-SEED-TASK or photo-INDEX-NAME."""
    return _parts(key)["task"] or "photo"


def picture_of(key: str) -> str:
    """What a question is about: a scene's seed, or a photograph's name."""
    parts = _parts(key)
    return parts["seed"] or parts["photo"]


def _parts(key: str) -> dict[str, str]:
    found = _KEY.search(key)
    if found is None:
        raise ValueError(f"{key!r} is no question's key: one ends with scene-SEED-TASK, say")
    return found.groupdict(default="")


if __name__ == "__main__":
    main()
