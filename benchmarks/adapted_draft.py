"""A draft for a target that was trained on: begun with the former one's draft, and from nothing.

    git worktree add FORMER f965194^     # the embedded pair before its target learnt to read better
    python benchmarks/adapted_draft.py --former FORMER/src/vispec/models/draft \\
        --questions DIR --work DIR --out benchmarks/results/adapted.json

What `vispec train --init` does, on the answers and features of `drafts_compared.py`, which go on
from the same folders: both drafts are of one kind, and learn for the same minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from drafts_compared import SHOWN, answer, look
from vispec.checkpoints.files import fingerprint, locate
from vispec.drafts import EagleDraft
from vispec.evaluation.conditions import commit, conditions
from vispec.loading_targets import load_target
from vispec.runs import claim
from vispec.training.curves import read_log
from vispec.training.drafts import begin, described, new_draft, started
from vispec.training.features import Store
from vispec.training.recipe import DraftRecipe, Recipe
from vispec.training.stages import judged, run_stage


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--former", type=Path, required=True, help="the former target's draft")
    parser.add_argument("--questions", type=Path, required=True, help="folder of the questions")
    parser.add_argument("--work", type=Path, required=True, help="answers, features, drafts")
    parser.add_argument("--out", type=Path, required=True, help="the result")
    parser.add_argument("--minutes", type=float, default=6, help="of one core, for a draft (6)")
    options = parser.parse_args(argv)

    torch.set_num_threads(1)
    options.target = "embedded"
    target = load_target("embedded", dtype="float32")
    for made in (answer, look):
        made(target, options, 0, 1)
    stores = [
        Store(options.work / "features" / name, target, layered=False)
        for name in ("multimodal", "heldout")
    ]
    heldout = list(stores[1])
    known = started(target, DraftRecipe(), str(options.former))
    if not isinstance(known, EagleDraft):
        sys.exit(f"{options.former} is no EAGLE draft, which this compares")
    wanted = DraftRecipe(adapter=described(known)["adapter"])
    before = judged(known.float(), target, heldout, SHOWN.positions)
    stage = replace(SHOWN, minutes=options.minutes, evaluate_minutes=options.minutes / 6)
    logs = {}
    for name, init in (("begun with the former draft", options.former), ("from nothing", None)):
        folder = options.work / "adapted" / name.replace(" ", "-")
        claim(folder, {"init": fingerprint(init) if init else None, "minutes": options.minutes})
        recipe = Recipe("embedded", {}, [], wanted)
        draft = begin(target, recipe, {}, str(init)) if init else new_draft(target, wanted).float()
        run_stage(draft, target, stage, [stores[0]], heldout, folder, recipe, time.process_time)
        logs[name] = read_log(folder / "stages" / stage.name)
    result = {
        "command": "python benchmarks/adapted_draft.py",
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": conditions(),
        "minutes": options.minutes,
        "weights": {"target": fingerprint(locate("embedded"))},
        "former": fingerprint(options.former),
        "draft": asdict(wanted),
        "before": before,
        "logs": logs,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
