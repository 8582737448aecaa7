"""Which draft pays: candidates are trained briefly, and the fastest decoding decides.

Not the best loss, and not the longest acceptance: a draft that costs less may be worth more.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from vispec.decoding.engine import Engine
from vispec.decoding.planner import speeds
from vispec.errors import SettingsError
from vispec.loading_drafts import load_draft
from vispec.loading_targets import load_target
from vispec.runs import claim
from vispec.training.distill import read_answers
from vispec.training.pipeline import process_and_device, timed_requests, train
from vispec.training.questions import questions
from vispec.training.recipe import DraftRecipe, Recipe
from vispec.writing import write_json


def choose(
    recipe: Recipe,
    folder: Path,
    minutes: float,
    *,
    command: str = "",
    device: str = "auto",
    cache: Path | None = None,
) -> DraftRecipe:
    """The candidate whose draft decodes fastest.

    Args:
        folder: of the run; candidates are trained in `candidates/` of it.
        cache: of the answers and features that all of them learn from; the run's own by default.
        minutes: of training, all candidates together; answers and features are not counted.

    Raises:
        SettingsError: if the recipe names fewer than two candidates, or there is no time.
    """
    if minutes <= 0:
        raise SettingsError(f"{minutes} minutes train no candidate", "Give more.")
    if len(recipe.candidates) < 2:
        raise SettingsError(
            f"the recipe has {len(recipe.candidates)} candidates",
            "Name two [[candidates]] or more.",
        )
    by_steps = {bool(stage.steps) for stage in recipe.stages}
    if len(by_steps) > 1:
        raise SettingsError(
            "some stages have steps and others minutes, which have no share of a time",
            "Give all of them the same.",
        )
    each = minutes / len(recipe.candidates)
    whole = sum(stage.minutes or stage.steps for stage in recipe.stages)
    stages = [
        replace(stage, minutes=each * (stage.minutes or stage.steps) / whole, steps=0, patience=0)
        for stage in recipe.stages
    ]
    (state, place), path = process_and_device(device), folder / "auto.json"
    with state.main_process_first():
        claim(folder, {"candidates": [asdict(one) for one in recipe.candidates]}, "candidates.json")
    folders = []
    for number, draft in enumerate(recipe.candidates):
        own = folder / "candidates" / str(number)
        brief = replace(recipe, draft=draft, stages=stages)
        train(brief, own, command=command, device=device, cache=cache or folder)
        folders.append(own / "draft")
    # One process decides for all, and once.
    if state.is_main_process and not path.exists():
        # Not of what drafts are judged by: a choice by that would flatter the chosen one.
        names = recipe.stages[-1].data
        answers = {name: read_answers((cache or folder) / "answers" / name) for name in names}
        learnt = [
            [q for q in questions(recipe.data[name], name) if q.key in answers[name]]
            for name in names
        ]
        target = load_target(recipe.target, device=place)
        engines = []
        for trained in folders:
            loaded, tree = load_draft(trained, target)
            engines.append(Engine(target, loaded, tree=tree))
        requests = timed_requests(learnt, recipe.max_new_tokens)
        found = speeds(engines, requests)
        rows = [
            {"draft": asdict(draft), "tokens_per_s": value}
            for draft, value in zip(recipe.candidates, found, strict=True)
        ]
        write_json(path, rows)
    state.wait_for_everyone()
    rates = [row["tokens_per_s"] for row in json.loads(path.read_text())]
    return recipe.candidates[rates.index(max(rates))]
