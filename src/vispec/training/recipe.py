"""What to train, on what, and how: a small TOML file, checked before anything heavy starts."""

from __future__ import annotations

import json
import math
import reprlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vispec.adapters import Adapter, build
from vispec.errors import SettingsError
from vispec.training.losses import weighted
from vispec.training.questions import Source

RECIPES = Path(__file__).parent / "recipes"
"""Where those lie that come along."""
HELDOUT = "heldout"
"""The source of questions that acceptance is measured on."""
STRICT = ConfigDict(extra="forbid")
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
        heads: of `medusa`; 4 by default.
    """

    kind: Literal["eagle", "eagle3", "medusa"] = "eagle"
    layers: Positive = 1
    adapter: dict[str, Any] | list[dict[str, Any]] | None = None
    aux_layers: Annotated[list[Count], Field(min_length=1)] | None = None
    vocabulary: Count = 0
    heads: Positive | None = None

    def check(self) -> None:
        """Raise `SettingsError` for what no type tells."""
        meant = {"vocabulary": "eagle3", "aux_layers": "eagle, eagle3", "heads": "medusa"}
        for name, kinds in meant.items():
            if getattr(self, name) and self.kind not in kinds.split(", "):
                raise SettingsError(f"{self.kind} has no {name}", f"It is of {kinds}.")
        if self.adapter is None:
            return
        if self.kind == "medusa":
            raise SettingsError("medusa's heads read no images", "Leave the adapter out.")
        if "selector" in _kinds(self.adapter):
            raise SettingsError(
                "a selector is not trained but measured",
                "Train its parts, and put them together by vispec select.",
            )
        if self.sketched().rows and self.kind == "eagle3":
            raise SettingsError(
                "EAGLE-3's rows are twice as wide as its adapter", "Leave rows = true out."
            )

    def sketched(self) -> Adapter:
        """The adapter without its memory, of a width that all heads divide."""
        assert self.adapter is not None
        with torch.device("meta"):
            return build(self.adapter, math.lcm(64, *_heads(self.adapter)))


def _tables(stated: Any) -> Iterator[Mapping[str, Any]]:
    """Every adapter's settings in an adapter's, its own first."""
    if isinstance(stated, list):
        for part in stated:
            yield from _tables(part)
    elif isinstance(stated, dict):
        yield stated
        yield from _tables(stated.get("parts"))


def _kinds(stated: Any) -> list[Any]:
    return [table.get("kind") for table in _tables(stated)]


def _heads(stated: Any) -> Iterator[int]:
    """Every count of heads in an adapter's settings."""
    for table in _tables(stated):
        if type(table.get("heads")) is int and table["heads"] > 0:
            yield table["heads"]


@dataclass(config=STRICT, frozen=True)
class StageRecipe:
    """One stage of training.

    Attributes:
        data: names of the sources it learns from.
        losses: weights of `vispec.training.losses.LOSSES`.
        steps, minutes: how long; exactly one of them.
        self_fed: passes on the draft's own guesses.
        noise: uniform noise on true features, `(rand - 0.5) * noise * 512 / t` for a text of `t`
            positions, as EAGLE's and ViSpec's code has it.
        relative_noise: uniform noise up to this share of the features' standard deviation in
            either direction, whatever `t` is.
        clip, clip_value: longest gradient, and the largest of its numbers; 0 for no limit.
        decay: weight of each pass, or of each head, relative to the one before.
        train: what learns; the rest is frozen.
        batch: samples a step, over all processes.
        muon: learning rate of Muon, which then trains the matrices of the draft's linear layers, as
            a multiple of the others'; 0 for AdamW alone. Not where FSDP spreads weights.
        positions: of what a device runs at once, padding among them; a longer batch is taken apart.
        patience: evaluations without a longer acceptance, after which the stage ends, with the
            weights of the longest; 0 for none.
        evaluate_steps: between evaluations; 0 to go by `evaluate_minutes`.
    """

    name: Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$")]
    data: Annotated[list[str], Field(min_length=1)]
    losses: dict[str, Amount]
    learning_rate: Above
    steps: Count = 0
    minutes: Amount = 0.0
    self_fed: Count = 0
    noise: Amount = 0.0
    relative_noise: Amount = 0.0
    decay: Above = 1.0
    train: Literal["all", "adapter", "draft"] = "all"
    batch: Positive = 16
    positions: Positive = 8192
    accumulate: Positive = 1
    clip: Amount = 0.5
    clip_value: Amount = 0.0
    weight_decay: Amount = 0.05
    muon: Amount = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.04
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Count = 0
    evaluate_minutes: Amount = 5.0
    evaluate_steps: Count = 0
    bf16: bool = True

    def fits(self, draft: DraftRecipe) -> None:
        """Raise `SettingsError` if such a draft cannot be trained so."""
        where = f"stage '{self.name}'"
        if self.train != "all" and draft.adapter is None:
            raise SettingsError(f"{where} trains the {self.train}: there is no adapter")
        if self.train == "adapter" and not list(draft.sketched().parameters()):
            raise SettingsError(f"{where} trains the adapter, which has no weights")
        if "features" in self.losses and draft.kind != "eagle":
            raise SettingsError(
                f"{where} has a loss of features, and {draft.kind} guesses tokens",
                "Leave features out of its losses.",
            )
        passes = [k for k in ("self_fed", "noise", "relative_noise") if getattr(self, k)]
        if passes and draft.kind == "medusa":
            raise SettingsError(f"{where} has {passes[0]}, and medusa's heads run once")


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
    max_new_tokens: Positive = 512
    max_batch: Positive = 16
    candidates: list[DraftRecipe] = field(default_factory=list)

    def check(self, begun: bool = False) -> None:
        """Raise `SettingsError` for what no type tells.

        Args:
            begun: whether its stages train a draft that is given, rather than the one described.
        """
        if HELDOUT not in self.data:
            raise SettingsError("the recipe has no [data.heldout]", "Acceptance is measured on it.")
        if not self.stages:
            raise SettingsError("the recipe has no [[stages]]")
        drafts = (self.draft, *self.candidates)
        for draft in drafts:
            draft.check()
        for stage in self.stages:
            where = f"stage '{stage.name}'"
            weighted(stage.losses)
            if bool(stage.steps) == bool(stage.minutes):
                raise SettingsError(f"{where} has both steps and minutes, or neither", "Give one.")
            unknown = [name for name in stage.data if name not in self.data]
            if unknown:
                known = ", ".join(self.data)
                raise SettingsError(f"{where} learns from '{unknown[0]}'", f"Known are {known}.")
            for draft in () if begun else drafts:
                stage.fits(draft)
            if HELDOUT in stage.data:
                raise SettingsError(f"{where} learns from heldout", "Learn from something else.")
        unseen = self.data[HELDOUT]
        for name, source in self.data.items():
            if name != HELDOUT and source.overlaps(unseen):
                raise SettingsError(
                    f"[data.{name}] and [data.heldout] may share rows of {source.path!r}",
                    "What acceptance is measured on must not be learnt from: use first and limit.",
                )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise SettingsError(f"stages share a name: {', '.join(names)}")


def recipe_file(name: str) -> Path | None:
    """The file of a recipe: a `.toml`, or one that comes along; None of anything else."""
    if name.endswith(".toml"):
        return Path(name)
    known = RECIPES / f"{name}.toml"
    return known if known.is_file() and not Path(name).is_file() else None


def read_recipe(path: Path, begun: bool = False) -> Recipe:
    """A recipe from its file; relative paths in it are from its own folder.

    Args:
        begun: see `Recipe.check`.

    Raises:
        SettingsError: for a file that is no recipe: all that is unknown, missing or of a wrong type
            is named.
    """
    try:
        with path.open("rb") as file:
            stated = tomllib.load(file)
    except (OSError, ValueError) as error:  # no TOML, or no UTF-8
        raise SettingsError(f"{path} cannot be read as a recipe: {error}") from error
    return recipe(stated, str(path), path.parent, begun)


def recipe(stated: dict[str, Any], name: str, folder: Path = Path(), begun: bool = False) -> Recipe:
    """A recipe from what its file states; see `read_recipe`."""

    def refused(value: Any) -> Any:  # what TOML knows beyond JSON
        raise SettingsError(f"{name} has a date or a time, {value}", "Write texts in quotes.")

    try:
        # As JSON: strict about numbers and texts, and no more about objects than it must.
        as_json = json.dumps(stated, default=refused)
        found = TypeAdapter(Recipe).validate_json(as_json, strict=True)
    except ValidationError as error:
        lines = [f"\n  {'.'.join(map(str, one['loc']))}: {_said(one)}" for one in error.errors()]
        raise SettingsError(f"{name} is no recipe:{''.join(lines)}\n") from error
    sources = {key: _placed(source, folder) for key, source in found.data.items()}
    near = folder / found.target
    # What is built in has one name everywhere.
    own = found.target != "embedded" and (near / "config.json").is_file()
    found = replace(found, target=str(near) if own else found.target, data=sources)
    found.check(begun)
    return found


def _said(error: Any) -> str:
    """What pydantic found, in the words of recipes."""
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return "there is no such setting"
    if error["type"] == "missing":
        return "is missing"
    return f"{error['msg']}, and is {reprlib.repr(error['input'])}"


def _placed(source: Source, folder: Path) -> Source:
    near = folder / source.path
    return replace(source, path=str(near)) if near.exists() else source
