"""The draft formats that vispec knows, and which file of this package knows which.

What each of `FILES` has:

- `plan(config, shapes, name)`: how to load a checkpoint of one of its formats;
- `NETWORK`: the class of its drafts, and `kind(draft)`: what people call one;
- `forms(draft)`: the formats that such a draft can be written in, its own kind's first;
- `unsaid(draft, form)`: what of it a format has no word for;
- `closest(draft, form)`: a draft without that, and what was left out; nothing if it cannot be;
- `write(draft, folder, form, **extra)`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vispec.checkpoints import block, eagle3, medusa, vispec
from vispec.checkpoints.files import read_config, read_tensors, tensor_headers
from vispec.checkpoints.formats import Plan, Shapes, shapes_of
from vispec.drafts.compression import reshape
from vispec.errors import CheckpointError, SettingsError

FILES: tuple[ModuleType, ...] = (block, eagle3, vispec, medusa)
"""Asked in this order."""


def file_of(draft: nn.Module) -> ModuleType | None:
    """The file that knows a network; None for what is no draft."""
    return next((file for file in FILES if isinstance(draft, file.NETWORK)), None)


def plan(config: Mapping[str, Any], shapes: Shapes, name: str) -> Plan | None:
    """How to load a checkpoint, None where it is no draft of a known format.

    Raises:
        CheckpointError: for a known format that says what vispec cannot do.
    """
    settings = config.get("compression")
    if settings is not None:
        rest = {key: value for key, value in config.items() if key != "compression"}
        whole = plan(rest, uncompressed(shapes), name)
        return None if whole is None else compressed(whole, settings, name)
    for file in FILES:
        try:
            found: Plan | None = file.plan(config, shapes, name)
        except CheckpointError:
            raise
        # Whatever nonsense a configuration says, or a file's header.
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            said = f"{type(error).__name__}: {error}".split("\n", 1)[0]
            raise CheckpointError(
                name,
                f"describes no draft that can be built ({said})",
                fix="Compare its config.json and the shapes of its tensors with a published one.",
            ) from error
        if found is not None:
            return found
    kind = config.get("speculators_model_type")
    if kind is not None:
        raise CheckpointError(
            name,
            f"is a draft of the speculators kind '{kind}', which vispec does not know",
            fix="Known kinds are eagle3, dflash and dspark.",
        )
    return None


def uncompressed(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes that a compressed draft's tensors would have; see `vispec.drafts.compression`."""
    found: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        if key.endswith(".up.weight"):
            inner = shapes.get(key.replace(".up.", ".down."), (0, 0))
            found[key.replace(".up.", ".")] = (shape[0], inner[-1])
        elif key.endswith(".up.bias"):
            found[key.replace(".up.", ".")] = shape
        elif not key.endswith((".down.weight", ".scale")):
            found[key] = shape
    return found


def compressed(whole: Plan, settings: Any, name: str) -> Plan:
    """The plan of a draft whose matrices have smaller forms.

    Raises:
        CheckpointError: for a form that there is not.
    """
    try:
        with torch.device("meta"):
            reshape(whole.network, settings, fill=False)
    except (SettingsError, AttributeError) as error:
        raise CheckpointError(name, f"is compressed in a way that is none: {error}") from error
    published = {}
    for key in whole.network.state_dict():
        # `fc.up.weight` and `fc.scale` are named as `fc.weight` is.
        for ending in (".up.weight", ".down.weight", ".up.bias", ".scale"):
            base = f"{key.removesuffix(ending)}.weight"
            if key.endswith(ending) and base in whole.published:
                published[key] = whole.published[base].removesuffix(".weight") + ending
                break
        else:
            published[key] = whole.published[key]
    return replace(whole, published=published)


def plan_at(place: str, label: str, *, pickled: bool = False) -> Plan | None:
    """As `plan_of`, but None for what is no draft of a known format."""
    config = read_config(place)
    shapes = {key: shape for key, shape, _ in tensor_headers(place, pickled=pickled)}
    return plan(config, shapes, label)


def plan_of(
    name: str | os.PathLike[str], label: str | None = None, *, pickled: bool = False
) -> Plan:
    """The plan of a folder or hub repository, from its configuration and headers alone.

    Args:
        name: where it lies.
        label: what messages call it; `name` by default.
        pickled: read pickled weights where there are no others.

    Raises:
        CheckpointError: if it is no draft of a known format.
    """
    place = os.fspath(name)
    found = plan_at(place, label or place, pickled=pickled)
    if found is None:
        raise CheckpointError(
            label or place,
            "is not a draft of a known format",
            fix="Known are the formats of ViSpec, EAGLE, EAGLE-3, Medusa, DFlash, DSpark and"
            " speculators.",
        )
    return found


def read(name: str | os.PathLike[str], *, label: str | None = None, pickled: bool = False) -> Any:
    """Load a published draft; arguments and errors as of `plan_of`."""
    found = plan_of(name, label, pickled=pickled)
    return found.load(label or os.fspath(name), read_tensors(os.fspath(name), pickled=pickled))


def from_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Any:
    """Build a draft from a configuration and tensors under their published names."""
    found = plan(config, shapes_of(tensors), name)
    if found is None:
        raise CheckpointError(name, "is not a draft of a known format")
    return found.load(name, tensors)
