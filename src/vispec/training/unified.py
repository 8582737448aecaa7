"""Training drafts of several targets around one adapter that they share.

Every target has a recipe, answers, and a draft of its own; the core of their adapters is one
module. They take steps in turn, so the core learns from all.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from vispec.adapters import UnifiedAdapter
from vispec.drafts.sequential import SequentialDraft
from vispec.errors import SettingsError
from vispec.runs import claim
from vispec.targets import Target
from vispec.training.draft import Batches, Stage, matrices, split
from vispec.training.features import Sample
from vispec.training.pipeline import advise, keep, prepare, process_and_device
from vispec.training.questions import questions, refuse_shared
from vispec.training.recipe import HELDOUT, Recipe, StageRecipe
from vispec.training.stages import (
    WATCHED,
    claimed,
    heldout_numbers,
    names_of,
    settings_of_stage,
    staged,
)
from vispec.training.trainer import Trainer

Turn = tuple[int, list[Sample]]
"""Whose samples these are."""


def train_together(
    recipes: Mapping[str, Recipe],
    folder: Path,
    *,
    command: str = "",
    device: str = "auto",
    cache: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Train a draft for each of several targets, around one core.

    Args:
        recipes: by name; with adapters of the kind `unified`, and stages of the same settings, the
            steps and minutes of which are each target's.
        folder: of the run: `stages/` are those of all, and `<name>/` is as that of a single draft.
        command, device: see `vispec.training.pipeline.train`.
        cache: of answers and features, in `<name>/` of it; the run's own by default.

    Returns:
        what greedy chains accept of held-out answers in the end, by name.

    Raises:
        VispecError: for anything wrong with a recipe, its data or its target.
    """
    refuse_what_shares_nothing(recipes)
    for recipe in recipes.values():
        asked = {name: questions(source, name) for name, source in recipe.data.items()}
        refuse_shared(asked, HELDOUT)
    (stages, *_) = (recipe.stages for recipe in recipes.values())
    state, _ = process_and_device(device)
    with state.main_process_first():
        claim(folder, {"recipes": list(recipes)})
    runs = [
        prepare(
            recipe,
            folder / name,
            command=command,
            device=device,
            cache=None if cache is None else cache / name,
        )
        for name, recipe in recipes.items()
    ]
    runs = [
        replace(run, origin={**run.origin, "together": [o for o in recipes if o != name]})
        for name, run in zip(recipes, runs, strict=True)
    ]
    share([run.draft for run in runs])
    origin = {
        **runs[0].origin,
        "recipe": {name: asdict(recipe) for name, recipe in recipes.items()},
        "data": {
            f"{name}/{path}": digest
            for name, run in zip(recipes, runs, strict=True)
            for path, digest in run.origin["data"].items()
        },
    }
    for number, stage in enumerate(stages):
        facts = {
            name: {
                "before": [asdict(one) for one in recipe.stages[:number]],
                "stage": asdict(recipe.stages[number]),
                "seed": recipe.seed,
            }
            for name, recipe in recipes.items()
        }
        learners = []
        for run in runs:
            parts: Any = [run.data[name] for name in run.recipe.stages[number].data]
            data: Any = ConcatDataset(parts)
            learners.append(Learner(run.draft, run.target, data, run.data[HELDOUT]))
        with claimed(folder / "stages" / stage.name, facts):
            run_stage_together(learners, stage, folder, runs[0].recipe.seed, origin=origin)
    found = [keep(run, folder / "stages") for run in runs]
    for run, numbers in zip(runs, found, strict=True):
        advise(run, numbers)
    return dict(zip(recipes, found, strict=True))


def refuse_what_shares_nothing(recipes: Mapping[str, Recipe]) -> None:
    """Raise `SettingsError` for recipes that cannot be trained together."""
    if len(recipes) < 2:
        raise SettingsError(f"{len(recipes)} recipe shares no adapter", "Give two or more.")
    for name, recipe in recipes.items():
        adapter = recipe.draft.adapter
        if not isinstance(adapter, dict) or adapter.get("kind") != "unified":
            raise SettingsError(
                f"'{name}' has no adapter to share",
                'Give it adapter = { kind = "unified", width = …, parts = [{ … }] }.',
            )
        if name in ("stages", ""):
            raise SettingsError(f"a recipe is called '{name}'", "Call it otherwise.")
    first, *others = recipes
    stages = _but_for_data(recipes[first].stages)
    for name in others:
        if recipes[name].draft.adapter != recipes[first].draft.adapter:
            raise SettingsError(
                f"'{first}' and '{name}' have other adapters",
                "Give them the same width and parts.",
            )
        if _but_for_data(recipes[name].stages) != stages:
            raise SettingsError(
                f"'{first}' and '{name}' have stages of other settings",
                "They learn by turns: let them differ in their data alone.",
            )


def _but_for_data(stages: Sequence[StageRecipe]) -> list[StageRecipe]:
    """Stages as if all learnt from the same."""
    return [replace(stage, data=["any"]) for stage in stages]


@dataclass(frozen=True)
class Learner:
    """One target's draft, what it learns from, and what it is judged by."""

    draft: SequentialDraft
    target: Target
    data: Sequence[Sample]
    heldout: Sequence[Sample]


def run_stage_together(
    learners: Sequence[Learner],
    stage: StageRecipe,
    folder: Path,
    seed: int,
    clock: Callable[[], float] = time.monotonic,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Train one stage of drafts that share a core to its end; see `stages.run_stage`.

    Args:
        stage: its steps and minutes are each draft's.
    """
    place = folder / "stages" / stage.name
    count = len(learners)
    module = SharedStages([staged(one.draft, one.target, stage) for one in learners])
    batches = InTurn([Batches(one.data, stage.batch, seed, stage.positions) for one in learners])

    def evaluate(model: Any) -> dict[str, float]:
        found = [
            heldout_numbers(own.draft, one.target, one.heldout, stage)
            for own, one in zip(model.stages, learners, strict=True)
        ]
        by_target = {
            f"{name}_of_{whose}": value
            for whose, numbers in enumerate(found)
            for name, value in numbers.items()
        }
        return {WATCHED: statistics.fmean(numbers[WATCHED] for numbers in found), **by_target}

    trainer = Trainer(
        module,
        batches,
        lambda model, turn: model(turn),
        settings_of_stage(stage, place, clock, count),
        evaluate=evaluate,
        hidden=matrices(module),
        split=split_turn,
        load=batches.load,
        weigh=weigh_turn,
        names=lambda turn: names_of(turn[1]),
        origin=origin,
    )
    # That the core stands in a checkpoint once is as it should be.
    logger = logging.getLogger("accelerate.utils.other")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        trainer.run()
    finally:
        logger.setLevel(level)


def share(drafts: Sequence[SequentialDraft]) -> None:
    """Let drafts have one core: the first one's.

    Raises:
        SettingsError: for a draft without a unified adapter, or with another core.
    """
    adapters = []
    for draft in drafts:
        if not isinstance(draft.adapter, UnifiedAdapter):
            raise SettingsError(f"draft '{draft.name}' has no unified adapter to share")
        adapters.append(draft.adapter)
    for adapter in adapters[1:]:
        if adapter.settings != adapters[0].settings:
            raise SettingsError(
                f"cores differ: {adapters[0].settings} and {adapter.settings}",
                "Give them the same width and parts.",
            )
        adapter.core = adapters[0].core


class SharedStages(nn.Module):
    """The stages of several targets as one module to train."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, turn: Turn) -> tuple[Tensor, dict[str, float]]:
        """The loss of whose turn it is."""
        whose, samples = turn
        loss, numbers = self.stages[whose](samples)
        return loss, {f"{name}_of_{whose}": value for name, value in numbers.items()}


class InTurn:
    """Batches of several targets by turns; each depends on its step alone."""

    def __init__(self, batches: Sequence[Batches]) -> None:
        self.batches = batches

    def __call__(self, step: int) -> tuple[int, list[int]]:
        """Whose turn it is, and places of its samples."""
        round_, whose = divmod(step, len(self.batches))
        return whose, self.batches[whose](round_)

    def load(self, turn: tuple[int, list[int]]) -> list[Turn]:
        """See `Batches.load`."""
        whose, places = turn
        return [(whose, samples) for samples in self.batches[whose].load(places)]


def split_turn(turn: tuple[int, list[int]], parts: int) -> list[tuple[int, list[int]]]:
    """See `vispec.training.draft.split`."""
    return [(turn[0], part) for part in split(turn[1], parts)]


def weigh_turn(turn: Turn) -> int:
    """See `Stage.weight`."""
    return Stage.weight(turn[1])
