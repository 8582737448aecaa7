"""What all published draft formats have in common: a configuration, tensors, and a network.

A format is a file of this package. It recognises its checkpoints by their configuration and the
shapes of their tensors, builds the network that they are weights of, and says under which names
they publish its parameters. Checking, loading and naming what is wrong are the same for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vispec.checkpoints.files import read_config, read_tensors, tensor_headers
from vispec.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
"""Published tensor name to shape."""


@dataclass(frozen=True)
class Plan:
    """How to load one checkpoint.

    Attributes:
        form: the format, as users name it.
        network: what its weights belong to, on the meta device.
        published: the network's own parameter names to the published ones.
        extra: shapes of further tensors that belong to the format: vocabulary mappings, and copies
            of the target's weights.
        finish: puts what `extra` holds into the loaded network.
        facts: what it was trained for, as far as it says.
    """

    form: str
    network: nn.Module
    published: Mapping[str, str]
    extra: Shapes = field(default_factory=dict)
    finish: Callable[[nn.Module, Mapping[str, Tensor]], None] = lambda network, tensors: None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def problems(self, where: str, shapes: Shapes) -> CheckpointError | None:
        """Everything that is missing, unexpected or misshapen."""
        state = self.network.state_dict()
        expected = {self.published[own]: tuple(value.shape) for own, value in state.items()}
        return CheckpointError.tensors(
            where,
            found=shapes,
            expected=expected | {k: v for k, v in self.extra.items() if k in shapes},
        )

    def load(self, where: str, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network with its weights.

        Raises:
            CheckpointError: listing missing, unexpected and misshapen tensors.
        """
        error = self.problems(where, shapes_of(tensors))
        if error is not None:
            raise error
        own = {name: tensors[self.published[name]] for name in self.network.state_dict()}
        self.network.load_state_dict(own, strict=True, assign=True)
        self.finish(self.network, tensors)
        return self.network.eval().requires_grad_(False)


def plan(config: Mapping[str, Any], shapes: Shapes, name: str) -> Plan | None:
    """How to load a checkpoint, None where it is no draft of a known format.

    Raises:
        CheckpointError: for a known format that says what vispec cannot do.
    """
    from vispec.checkpoints import block, eagle3, vispec

    for file in (block, eagle3, vispec):
        found = file.plan(config, shapes, name)
        if found is not None:
            return found
    return None


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
    config = read_config(place)
    shapes = {key: shape for key, shape, _ in tensor_headers(place, pickled=pickled)}
    found = plan(config, shapes, label or place)
    if found is None:
        raise CheckpointError(
            label or place,
            "is not a draft of a known format",
            fix="Known are the formats of ViSpec, EAGLE, EAGLE-3, DFlash, DSpark and speculators.",
        )
    return found


def read(name: str | os.PathLike[str], *, label: str | None = None, pickled: bool = False) -> Any:
    """Load a published draft; arguments and errors as of `plan_of`."""
    tensors = read_tensors(os.fspath(name), pickled=pickled)
    return plan_of(name, label, pickled=pickled).load(label or os.fspath(name), tensors)


def from_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Any:
    """Build a draft from a configuration and tensors under their published names."""
    found = plan(config, shapes_of(tensors), name)
    if found is None:
        raise CheckpointError(name, "is not a draft of a known format")
    return found.load(name, tensors)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def required(config: Mapping[str, Any], keys: Iterable[str], name: str) -> None:
    """Raise `CheckpointError`, naming the keys that a configuration lacks."""
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise CheckpointError(name, "has a configuration without", missing=missing)
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(
            name, f"has hidden_act '{activation}'; drafts of this format use silu"
        )


def rope(config: Mapping[str, Any], theta: float = 10000.0) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary positions, as older and newer configurations state them."""
    stated = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = config.get("rope_theta") or stated.pop("rope_theta", None) or theta
    return float(base), stated or None


def empty_embedding(shapes: Shapes, key: str = "embed_tokens.weight") -> nn.Embedding | None:
    """On the meta device, of the size that a checkpoint has; None where it has none."""
    if key not in shapes:
        return None
    rows, width = shapes[key]
    return nn.Embedding(rows, width, device=torch.device("meta"))
