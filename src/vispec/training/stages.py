"""One stage of a draft's training: what learns, from which batches, and how it is judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from torch.utils.data import ConcatDataset

from vispec.drafts.medusa import MedusaDraft
from vispec.errors import DivergedError, SettingsError
from vispec.runs import claim
from vispec.targets import Target
from vispec.training.chains import joined
from vispec.training.draft import Batches, Stage, acceptance, matrices, split
from vispec.training.features import Sample
from vispec.training.medusa import MedusaStage, medusa_acceptance
from vispec.training.recipe import HELDOUT, Recipe, StageRecipe
from vispec.training.trainer import Settings, Trainer

WATCHED = f"{HELDOUT}_acceptance_length"
"""What a stage with patience waits for."""


def claim_stage(folder: Path, stages: Sequence[StageRecipe], number: int) -> None:
    """Keep a stage's folder to what came before it."""
    before = {"before": [asdict(one) for one in stages[:number]]}
    with PartialState().main_process_first():
        claim(folder / "stages" / stages[number].name, before, "before.json")


@contextmanager
def claimed(place: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Keep a stage's folder to its settings, until these turn out to diverge."""
    state, name = PartialState(), "stage.json"
    with state.main_process_first():
        claim(place, facts, name)
    try:
        yield
    except DivergedError:
        # What comes next has to be another; it goes on from the last good checkpoint.
        if state.is_main_process:
            (place / name).unlink(missing_ok=True)
        raise


def run_stage(
    draft: Any,
    target: Target,
    stage: StageRecipe,
    data: Sequence[Sequence[Sample]],
    heldout: Sequence[Sample],
    folder: Path,
    recipe: Recipe,
    clock: Callable[[], float] = time.monotonic,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Train one stage to its end.

    Args:
        clock: counts its minutes.
        origin: where its checkpoints come from.

    Raises:
        VispecError: if the stage was begun with other settings.
    """
    place = folder / "stages" / stage.name
    module = staged(draft, target, stage)
    parts: Any = data
    whole: Any = ConcatDataset(parts)
    batches = Batches(whole, stage.batch, recipe.seed, stage.positions)
    with claimed(place, {"stage": asdict(stage), "seed": recipe.seed}):
        Trainer(
            module,
            batches,
            lambda model, samples: model(samples),
            settings_of_stage(stage, place, clock),
            evaluate=lambda model: heldout_numbers(model.draft, target, heldout, stage),
            split=split,
            load=batches.load,
            hidden=matrices(module),
            weigh=Stage.weight,
            names=names_of,
            origin=origin,
        ).run()


def staged(draft: Any, target: Target, stage: StageRecipe) -> nn.Module:
    """A draft with what a stage asks of it; what is not to learn is frozen."""
    draft.train().requires_grad_(True)
    adapter = getattr(draft, "adapter", None)
    if stage.train != "all":
        if adapter is None:
            raise SettingsError(
                f"stage '{stage.name}' trains the {stage.train}: there is no adapter"
            )
        joins = [adapter, *([draft.img_fc] if draft.img_fc is not None else [])]
        draft.requires_grad_(stage.train == "draft")
        for part in joins:
            part.requires_grad_(stage.train == "adapter")
        if not any(parameter.requires_grad for parameter in draft.parameters()):
            raise SettingsError(
                f"stage '{stage.name}' trains the {stage.train}, which has nothing that learns"
            )
    if isinstance(draft, MedusaDraft):
        return MedusaStage(draft, target, stage.losses, decay=stage.decay)
    return Stage(
        draft,
        target,
        stage.losses,
        self_fed=stage.self_fed,
        noise=stage.noise,
        relative_noise=stage.relative_noise,
        decay=stage.decay,
    )


def settings_of_stage(
    stage: StageRecipe, place: Path, clock: Callable[[], float], times: int = 1
) -> Settings:
    """A stage in the trainer's words.

    Args:
        place: folder of the stage.
        times: by which steps and minutes are more.
    """
    return Settings(
        place,
        stage.learning_rate,
        budget_s=times * stage.minutes * 60 or None,
        budget_steps=times * stage.steps or None,
        warmup_share=stage.warmup,
        weight_decay=stage.weight_decay,
        matrix_rate=stage.muon,
        clip_norm=stage.clip,
        clip_value=stage.clip_value,
        autocast=stage.bf16,
        accumulate=stage.accumulate,
        ema=stage.ema,
        evaluate_s=times * stage.evaluate_minutes * 60,
        evaluate_steps=times * stage.evaluate_steps,
        watch=WATCHED,
        patience=stage.patience,
        clock=clock,
    )


def heldout_numbers(
    draft: Any, target: Target, heldout: Sequence[Sample], stage: StageRecipe
) -> dict[str, float]:
    """What `judged` finds, as logs call it."""
    found = judged(draft, target, heldout, stage.positions)
    return {f"{HELDOUT}_{name}": value for name, value in found.items()}


def judged(
    draft: Any, target: Target, samples: Sequence[Sample], positions: int
) -> dict[str, float]:
    """What greedy chains accept of samples.

    Args:
        positions: of what is run at once, as of a stage.
    """
    measure: Any = medusa_acceptance if isinstance(draft, MedusaDraft) else acceptance
    was = draft.training
    draft.eval()
    parts, counts = [], []
    batches = Batches(samples, 8, 0, positions)
    for start in range(0, len(samples), batches.size):
        for group in batches.load(range(start, min(start + batches.size, len(samples)))):
            parts.append(measure(draft, target, group))
            counts.append(Stage.weight(group))
    draft.train(was)
    found = joined(parts, counts)
    return {k: v for k, v in found.items() if k not in ("cycles", "said")}


def names_of(samples: Sequence[Sample]) -> str:
    """What a batch is called, for messages."""
    return ", ".join(sample.key for sample in samples)
