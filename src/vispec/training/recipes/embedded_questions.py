"""What the embedded target is asked: about rendered scenes, photographs, and nothing to look at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

from PIL import Image

from vispec.training import photos, scenes
from vispec.training.distill import Question


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
    data: Path, count: int, part: str, temperatures: Sequence[float]
) -> list[Question]:
    """Questions about photographs, both sets in turn."""
    sets = [photos.load(data, name, part) for name in ("flickr8k", "daquar")]
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
    data: Path, *, scenes: int, photos: int, texts: int, heldout: int
) -> dict[str, list[Question]]:
    """What drafts learn from, `text` and `multimodal`, and what they are judged by, `heldout`.

    Args:
        data: folder with the photographs.
        scenes, photos, texts, heldout: how many questions; a third of the last is photographs.
    """
    mixed = (0.0, 0.0, 1.0)
    asked = scene_questions(scenes, "train", 5_000_000, mixed)
    asked += photo_questions(data, photos, "train", mixed)
    unseen = scene_questions(heldout * 2 // 3, "heldout", 9_000_000, (0.0,))
    unseen += photo_questions(data, heldout // 3, "heldout", (0.0,))
    return {"heldout": unseen, "text": text_questions(asked, texts), "multimodal": asked}


def _render(seed: int, task: str) -> Image.Image:
    return scenes.scene(seed, task).image


def task_of(key: str) -> str:
    """The task of a question: keys read scene-SEED-TASK and photo-INDEX-NAME."""
    kind, _, last = key.split("-", 2)
    return last if kind == "scene" else kind
