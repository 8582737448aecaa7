"""One adapter for two targets, compared with one for each.

    python benchmarks/shared_adapter.py --questions DIR --work DIR --out FILE

The second target is a small sibling of the embedded one: it began with a few of its layers, sees
its image tokens through a matrix, is as wide, and answers for itself. Two targets that have less in
common may share less. Drafts with an adapter of their own, drafts with one that has matrices into
and out of its core as shared ones have, and drafts that share the core, are trained for the same
minutes of one core a target, on answers to the same questions; then they answer the same held-out
questions by turns. Everything resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from drafts_compared import LONGEST, QUERY, SHOWN, TREE, ask, asked_of, keep, size
from small_model import Small, train_small
from vispec.checkpoints.files import fingerprint, locate
from vispec.decoding.engine import Engine
from vispec.evaluation.conditions import commit, conditions
from vispec.loading_drafts import load_draft
from vispec.loading_targets import load_target
from vispec.runs import claim
from vispec.targets import Target
from vispec.training.distill import Question, digest, distill
from vispec.training.drafts import new_draft
from vispec.training.features import Sample, Store, collect
from vispec.training.recipe import DraftRecipe, Recipe
from vispec.training.stages import run_stage
from vispec.training.unified import Learner, run_stage_together, share

UNIFIED = {"kind": "unified", "width": 192, "parts": [QUERY]}
OWN = {"own": QUERY, "own core": UNIFIED}
"""Adapters of one target each."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=Path, required=True, help="folder of the questions")
    parser.add_argument("--work", type=Path, required=True, help="answers, features, drafts")
    parser.add_argument("--out", type=Path, required=True, help="the result")
    parser.add_argument("--minutes", type=float, default=15, help="of one core, a target (15)")
    parser.add_argument("--small-minutes", type=float, default=40, help="for the target (40)")
    parser.add_argument("--learnt", type=int, default=8000, help="questions learnt from (8000)")
    parser.add_argument("--timed", type=int, default=120, help="questions that are timed (120)")
    options = parser.parse_args(argv)

    facts = {name: getattr(options, name) for name in ("minutes", "small_minutes", "learnt")}
    parts = ("multimodal", "heldout")
    facts["questions"] = [digest(asked_of(options, part), LONGEST) for part in parts]
    facts["weights"] = fingerprint(locate("embedded"))
    claim(options.work, facts)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    first = load_target("embedded", dtype="float32")
    data = [collected(first, "embedded", options)]
    place = options.work / "second"
    if not (place / "draft").exists():
        train_small(first, Small(), [data[0][0]], data[0][1], place, options.small_minutes)
    second = load_target(place / "draft", dtype="float32")
    data.append(collected(second, "second", options))
    targets = [first, second]
    folders = options.work / "arms"
    for name, adapter in OWN.items():
        for number, target in enumerate(targets):
            folder = folders / f"{name.replace(' ', '-')}-{number}"
            if not (folder / "draft").exists():
                train_own(target, adapter, data[number], folder, options.minutes)
    if not (folders / "shared-1" / "draft").exists():
        train_shared(targets, data, folders, options.minutes)
    torch.set_num_threads(threads)

    asked = spread(asked_of(options, "timed"), options.timed)
    found: dict[str, Any] = {}
    for number, target in enumerate(targets):
        ways, sizes = {"plain": Engine(target)}, {}
        for kind in (*OWN, "shared"):
            folder = folders / f"{kind.replace(' ', '-')}-{number}"
            draft, _ = load_draft(folder / "draft", target)
            ways[kind], sizes[kind] = Engine(target, draft, tree=TREE), size(draft)
        path = options.work / f"measured-{number}.json"
        found[("embedded", "second")[number]] = {
            "sizes": sizes,
            "core": sum(p.numel() for p in draft.adapter.core.parameters()),  # type: ignore[attr-defined]
            "measured": ask(ways, asked, path),
        }
    result = {
        "command": "python benchmarks/shared_adapter.py",
        "minutes": options.minutes,
        "small_minutes": options.small_minutes,
        "commit": commit(),
        "weights": {"target": facts["weights"]},
        "date": time.strftime("%Y-%m-%d"),
        "machine": conditions(),
        "tree": asdict(TREE),
        "questions": [question.key for question in asked],
        "targets": found,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def collected(target: Target, name: str, options: argparse.Namespace) -> tuple[Store, list[Sample]]:
    """What a target says of pictures, and of held-out ones."""
    stores = []
    for part in ("multimodal", "heldout"):
        group = asked_of(options, part)
        if part == "multimodal":
            group = spread(group, options.learnt)
        place = options.work / name
        # The embedded target may have a draft; what it says is the same.
        draft = load_draft("embedded", target) if name == "embedded" else (None, None)
        engine = Engine(target, draft[0], tree=draft[1], max_batch=32)
        answers = distill(engine, group, place / "answers" / part, max_new_tokens=LONGEST)
        stores.append(collect(target, group, answers, place / "features" / part))
    return stores[0], list(stores[1])


def spread(questions: Sequence[Question], count: int) -> list[Question]:
    """So many of them, from first to last."""
    count = min(count, len(questions))
    return [questions[len(questions) * i // count] for i in range(count)]


def train_own(
    target: Target,
    adapter: dict[str, Any],
    data: tuple[Store, list[Sample]],
    folder: Path,
    minutes: float,
) -> None:
    """A draft with an adapter of its own."""
    wanted = DraftRecipe(adapter=adapter)
    draft: Any = new_draft(target, wanted).float()
    stage = replace(SHOWN, minutes=minutes, evaluate_minutes=minutes / 4)
    recipe = Recipe(target="", data={}, stages=[], draft=wanted)
    run_stage(draft, target, stage, [data[0]], data[1], folder, recipe, time.process_time)
    keep(draft, folder)


def train_shared(
    targets: Sequence[Target],
    data: Sequence[tuple[Store, list[Sample]]],
    folder: Path,
    minutes: float,
) -> None:
    """Drafts around one core, by turns."""
    drafts: list[Any] = [
        new_draft(target, DraftRecipe(adapter=UNIFIED), seed=0).float() for target in targets
    ]
    share(drafts)
    learners = [
        Learner(draft, target, own, heldout)
        for draft, target, (own, heldout) in zip(drafts, targets, data, strict=True)
    ]
    stage = replace(SHOWN, minutes=minutes, evaluate_minutes=minutes / 4)
    run_stage_together(learners, stage, folder / "shared", 0, time.process_time)
    for number, draft in enumerate(drafts):
        keep(draft, folder / f"shared-{number}")


if __name__ == "__main__":
    main()
