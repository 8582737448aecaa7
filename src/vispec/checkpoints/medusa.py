"""Medusa's heads, under the names of the published checkpoints.

Tensors of head `i`: `i.j.linear.weight` and `.bias` of its residual layers, and `i.L.weight` of its
LM head, where it has one of its own and `L` layers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from vispec.checkpoints.formats import Plan, Shapes, facts, required, save
from vispec.drafts.medusa import MedusaConfig, MedusaDraft

NETWORK = MedusaDraft


def plan(config: Mapping[str, Any], shapes: Shapes, name: str) -> Plan | None:
    """How to load Medusa's heads; None for other checkpoints."""
    if "0.0.linear.weight" not in shapes:
        return None
    required(config, ("medusa_num_heads", "medusa_num_layers"), name)
    layers, d = config["medusa_num_layers"], shapes["0.0.linear.weight"][0]
    own = shapes.get(f"0.{layers}.weight")
    c = MedusaConfig(
        hidden_size=d,
        vocab_size=own[0] if own else config["vocab_size"],
        heads=config["medusa_num_heads"],
        layers=layers,
        own_heads=own is not None,
    )
    with torch.device("meta"):
        draft = MedusaDraft(c, name)
    return Plan(
        form="medusa",
        network=draft,
        published={key: _published(key, c) for key in draft.state_dict()},
        facts=facts(config),
    )


def kind(draft: MedusaDraft) -> str:
    """What people call it."""
    return "Medusa"


def forms(draft: MedusaDraft) -> tuple[str, ...]:
    """The formats it can be written in."""
    return ("medusa",)


def unsaid(draft: MedusaDraft, form: str) -> list[str]:
    """What of it a format has no word for."""
    return []


def closest(draft: MedusaDraft, form: str) -> tuple[None, list[str]]:
    """Nothing of it can be left out."""
    return None, []


def write(
    draft: MedusaDraft, folder: str | os.PathLike[str], form: str = "medusa", **extra: Any
) -> None:
    """Save `config.json` and `model.safetensors`.

    Args:
        draft: what to save.
        folder: is made where it does not exist.
        form: there is one.
        extra: further configuration entries, such as what the draft was trained for.
    """
    c = draft.config
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "medusa_num_heads": c.heads,
        "medusa_num_layers": c.layers,
        "hidden_size": c.hidden_size,
        "vocab_size": c.vocab_size,
        "dtype": str(draft.dtype).removeprefix("torch."),
        **extra,
    }
    save(folder, config, {_published(k, c): v for k, v in draft.state_dict().items()})


def _published(key: str, c: MedusaConfig) -> str:
    """`heads.i.layers.j.weight` and `heads.i.lm_head.weight`, as files have them."""
    _, head, part, *rest = key.split(".")
    if part == "lm_head":
        return f"{head}.{c.layers}.{'.'.join(rest)}"
    return f"{head}.{rest[0]}.linear.{'.'.join(rest[1:])}"
