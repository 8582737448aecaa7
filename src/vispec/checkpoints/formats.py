"""What all published draft formats have in common: a configuration, tensors, and a network.

A file of this package knows the formats of one kind of network; see `registry`. It recognises its
checkpoints by their configuration and the shapes of their tensors, builds the network that they are
weights of, and says under which names they publish its parameters. Checking, loading and naming
what is wrong are the same for all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vispec.adapters.base import Adapter
from vispec.adapters.build import build
from vispec.decoding.tree import TreeShape
from vispec.errors import CheckpointError, SettingsError
from vispec.writing import saving

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
        required: those of `extra` that it cannot do without.
    """

    form: str
    network: nn.Module
    published: Mapping[str, str]
    extra: Shapes = field(default_factory=dict)
    finish: Callable[[nn.Module, Mapping[str, Tensor]], None] = lambda network, tensors: None
    facts: Mapping[str, Any] = field(default_factory=dict)
    required: Sequence[str] = ()

    def problems(self, where: str, shapes: Shapes) -> CheckpointError | None:
        """Everything that is missing, unexpected or misshapen."""
        state = self.network.state_dict()
        expected = {self.published[own]: tuple(value.shape) for own, value in state.items()}
        return CheckpointError.tensors(
            where,
            found=shapes,
            expected=expected
            | {k: v for k, v in self.extra.items() if k in shapes or k in self.required},
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


def advised_tree(plan: Plan, name: str) -> TreeShape | None:
    """The tree that a draft's configuration recommends; None where it recommends none.

    Raises:
        CheckpointError: for what is no tree.
    """
    stated = plan.facts.get("tree")
    if not stated:
        return None
    try:
        return TreeShape(**stated)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            name,
            f"recommends a tree that is none: {stated!r} ({error})",
            fix="Correct 'tree' in its config.json: size, depth and width, whole numbers.",
        ) from error


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says its draft was trained for, whichever format it is of."""
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    stated = {
        "target": config.get("target") or verifier.get("name_or_path"),
        "tree": config.get("tree"),
    }
    return {key: value for key, value in stated.items() if value}


def extra_shapes(c: Any) -> Shapes:
    """Of tensors that are no draft's own parameters: its vocabulary, and copies of the target's."""
    return {
        "d2t": (c.draft_vocab_size,),
        "t2d": (c.vocab_size,),
        "verifier_norm.weight": (c.hidden_size,),
        "verifier_lm_head.weight": (c.draft_vocab_size, c.hidden_size),
    }


def save(
    folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write `config.json` and `model.safetensors` into a folder, which is made where it is not."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    whole = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    weights = path / "model.safetensors"
    with saving(weights):
        save_file(whole, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # it is written readable by its owner alone
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def token_tables(token_map: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """A reduced vocabulary as formats store it: `d2t`, what is added to the draft's tokens to get
    the target's, and `t2d`, which of the target's the draft can say."""
    place = torch.arange(len(token_map), device=token_map.device)
    known = torch.zeros(vocabulary, dtype=torch.bool, device=token_map.device)
    return {"d2t": token_map - place, "t2d": known.index_fill(0, token_map, True)}


def token_map(tensors: Mapping[str, Tensor], own: int, vocabulary: int, name: str) -> Tensor | None:
    """Which of the target's tokens the draft's are; None where they are the same.

    Args:
        own: tokens that the draft knows.
        vocabulary: tokens that the target knows.
        name: of the draft, for messages.

    Raises:
        CheckpointError: for a table that names tokens twice, or tokens that there are not.
    """
    if own == vocabulary:
        return None
    found = torch.arange(own) + tensors["d2t"].long().cpu()
    if not (int(found.min()) >= 0 and int(found.max()) < vocabulary and len(found.unique()) == own):
        raise CheckpointError(
            name,
            f"has a table of tokens (d2t) that does not lead to {own} different ones below"
            f" {vocabulary}",
            fix="The table is of another vocabulary, or damaged.",
        )
    return found


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def required(config: Mapping[str, Any], keys: Iterable[str], name: str) -> None:
    """Raise `CheckpointError`, naming the keys that a configuration lacks."""
    keys = list(keys)
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise CheckpointError(name, "has a configuration without", missing=missing)
    for key in keys:
        if key.endswith("_size") or key.startswith("num_"):
            positive(config, key, name)
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(
            name, f"has hidden_act '{activation}'; drafts of this format use silu"
        )


def positive(config: Mapping[str, Any], key: str, name: str) -> int:
    """A whole number from 1 on.

    Raises:
        CheckpointError: for anything else.
    """
    value = config[key]
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(name, f"has {key} {value!r}; it must be a whole number from 1 on")
    return value


def rope(config: Mapping[str, Any], theta: float = 10000.0) -> dict[str, Any]:
    """Rotary positions, as older and newer configurations state them, under the older names."""
    stated = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    within = stated.pop("rope_theta", None)
    part = config.get("partial_rotary_factor")
    if part not in (None, 1):
        stated.setdefault("partial_rotary_factor", part)
    return {
        "rope_theta": float(config.get("rope_theta") or within or theta),
        "rope_scaling": stated or None,
        "max_position_embeddings": config.get("max_position_embeddings") or 0,
    }


def decoder_config(c: Any) -> dict[str, Any]:
    """What all formats say of a draft's decoder, in the words of Hugging Face's Llama.

    Engines build the draft for as many positions as are stated, and for 2048 where none are.
    """
    return {
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        **({"rope_scaling": dict(c.rope_scaling)} if c.rope_scaling else {}),
        **(
            {"max_position_embeddings": c.max_position_embeddings}
            if c.max_position_embeddings
            else {}
        ),
        "vocab_size": c.vocab_size,
    }


def stated_adapter(config: Mapping[str, Any], hidden_size: int, name: str) -> Adapter | None:
    """The adapter that our own configurations describe; None where they describe none.

    Raises:
        CheckpointError: for one that cannot be built.
    """
    settings = config.get("adapter")
    if settings is None:
        return None
    try:
        return build(settings, hidden_size)
    except SettingsError as error:
        raise CheckpointError(name, f"describes an adapter that is none: {error}") from error


def empty_embedding(shapes: Shapes, c: Any) -> nn.Embedding | None:
    """The draft's own token embedding, on the meta device; None where a checkpoint has none."""
    if "embed_tokens.weight" not in shapes:
        return None
    return nn.Embedding(c.vocab_size, c.hidden_size, device=torch.device("meta"))
