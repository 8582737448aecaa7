"""What to train, on what, and how: a small TOML file, checked before anything heavy starts."""

from __future__ import annotations

import json
import tomllib
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vispec.adapters import build
from vispec.errors import SettingsError
from vispec.training.losses import weighted
from vispec.training.questions import Source

RECIPES = Path(__file__).parent / "recipes"
"""Where those lie that come along."""
STRICT = ConfigDict(extra="forbid")


@dataclass(config=STRICT, frozen=True)
class DraftRecipe:
    """The draft, whose geometry is that of one of the target's decoder layers.

    Attributes:
        kind: `eagle` guesses features, and is ViSpec with a query adapter; `eagle3` guesses tokens
            from three layers; `medusa` has heads.
        layers: decoder layers, or residual layers of each head.
        adapter: what compresses images; see `vispec.adapters.build`. None reads every token.
        aux_layers: whose hidden states are read; the kind's own choice by default.
        vocabulary: most frequent tokens that it knows, of an `eagle3` draft; 0 for all.
        heads: of `medusa`.
    """

    kind: Literal["eagle", "eagle3", "medusa"] = "eagle"
    layers: int = 1
    adapter: dict[str, Any] | list[dict[str, Any]] | None = None
    aux_layers: list[int] | None = None
    vocabulary: int = 0
    heads: int = 4


@dataclass(config=STRICT, frozen=True)
class StageRecipe:
    """One stage of training.

    Attributes:
        data: names of the sources it learns from.
        losses: weights of `vispec.training.losses.LOSSES`.
        steps, minutes: how long; exactly one of them.
        self_fed: passes on the draft's own guesses.
        noise: uniform noise on true features, as a share of their standard deviation.
        decay: weight of each pass, or of each head, relative to the one before.
        train: what learns; the rest is frozen.
        batch: samples a step, over all processes.
        positions: longest padded batch.
        patience: evaluations without a longer acceptance, after which the stage ends; 0 for none.
    """

    name: str
    data: list[str]
    losses: dict[str, float]
    learning_rate: float
    steps: int = 0
    minutes: float = 0.0
    self_fed: int = 0
    noise: float = 0.0
    decay: float = 1.0
    train: Literal["all", "adapter", "draft"] = "all"
    batch: int = 16
    positions: int = 8192
    accumulate: int = 1
    clip: float = 0.5
    warmup: float = 0.04
    ema: float = 0.0
    patience: int = 0
    evaluate_minutes: float = 5.0
    bf16: bool = True


@dataclass(config=STRICT, frozen=True)
class Recipe:
    """A draft from nothing.

    Attributes:
        target: `embedded`, a folder, or a hub name.
        data: sources by name; `heldout` is what acceptance is measured on, and never learnt from.
        features: `online` works them out for every step; the others keep them in that precision.
        max_new_tokens: longest answer.
        max_batch: questions that are answered at the same time.
        candidates: drafts that `--auto` chooses from.
    """

    target: str
    data: dict[str, Source]
    stages: list[StageRecipe]
    draft: DraftRecipe = field(default_factory=DraftRecipe)
    features: Literal["online", "float32", "bfloat16", "int8"] = "bfloat16"
    seed: int = 0
    max_new_tokens: int = 512
    max_batch: int = 16
    candidates: list[DraftRecipe] = field(default_factory=list)

    def check(self) -> None:
        """Raise `SettingsError` for what no type tells."""
        if "heldout" not in self.data:
            raise SettingsError("the recipe has no [data.heldout]", "Acceptance is measured on it.")
        if not self.stages:
            raise SettingsError("the recipe has no [[stages]]")
        for stage in self.stages:
            where = f"stage '{stage.name}'"
            weighted(stage.losses)
            if bool(stage.steps) == bool(stage.minutes):
                raise SettingsError(f"{where} has both steps and minutes, or neither", "Give one.")
            unknown = [name for name in stage.data if name not in self.data]
            if unknown:
                known = ", ".join(self.data)
                raise SettingsError(f"{where} learns from '{unknown[0]}'", f"Known are {known}.")
            if "heldout" in stage.data:
                raise SettingsError(f"{where} learns from heldout", "Learn from something else.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise SettingsError(f"stages share a name: {', '.join(names)}")
        for draft in (self.draft, *self.candidates):
            if draft.adapter is not None:
                # Of some width, to see whether its settings make sense.
                build(draft.adapter, 64)
            if draft.kind == "medusa" and draft.adapter is not None:
                raise SettingsError("medusa's heads read no images", "Leave the adapter out.")


def read_recipe(path: Path) -> Recipe:
    """A recipe from its file; relative paths in it are from its own folder.

    Raises:
        SettingsError: for a file that is no recipe: all that is unknown, missing or of a wrong type
            is named.
    """
    try:
        with path.open("rb") as file:
            stated = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as a recipe: {error}") from error
    return recipe(stated, str(path), path.parent)


def recipe(stated: dict[str, Any], name: str, folder: Path = Path()) -> Recipe:
    """A recipe from what its file states; errors as of `read_recipe`."""
    try:
        # As JSON: strict about numbers and texts, and no more about objects than it must.
        found = TypeAdapter(Recipe).validate_json(json.dumps(stated), strict=True)
    except ValidationError as error:
        lines = [f"\n  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise SettingsError(f"{name} is no recipe:{''.join(lines)}\n") from error
    found.check()
    sources = {key: _placed(source, folder) for key, source in found.data.items()}
    return replace(found, data=sources)


def _placed(source: Source, folder: Path) -> Source:
    near = folder / source.path
    return replace(source, path=str(near)) if near.exists() else source
