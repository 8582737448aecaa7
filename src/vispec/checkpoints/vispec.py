"""The format of published ViSpec drafts, and of EAGLE/EAGLE-2 drafts, which are its subset.

Tensors: `fc`, `layers.i.…` (the first without `input_layernorm`), with an adapter also `imadpt.…`
and `img_fc`, and optionally `embed_tokens`, a copy of the target's. The configuration is a Llama
one. Biases and the number of queries are facts of the tensors; no key states them reliably.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vispec.adapters.query import QueryAdapter
from vispec.checkpoints.formats import Plan, Shapes, required, rope
from vispec.drafts.eagle import EagleConfig, EagleDraft

_ADAPTER = ("adapter.", "imadpt.")
"""Our module's prefix, and the published one."""


def plan(config: Mapping[str, Any], shapes: Shapes, name: str) -> Plan | None:
    """How to load a ViSpec or EAGLE draft; None for other checkpoints."""
    if "fc.weight" not in shapes or "layers.0.self_attn.q_proj.weight" not in shapes:
        return None
    out, width = shapes["fc.weight"]
    if width >= 3 * out or "layers.0.hidden_norm.weight" in shapes:
        return None  # EAGLE-3 fuses three features
    draft = _empty(config, shapes, name)
    return Plan(
        form="vispec" if draft.adapter is not None else "eagle",
        network=draft,
        published={key: _rename(key, *_ADAPTER) for key in draft.state_dict()},
        facts={key: config[key] for key in ("target", "tree") if key in config},
    )


def write(draft: EagleDraft, folder: str | os.PathLike[str], **extra: Any) -> None:
    """Save `config.json` and `model.safetensors`.

    Args:
        draft: what to save.
        folder: is made where it does not exist.
        extra: further configuration entries, such as what the draft was trained for.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        _rename(key, *_ADAPTER): tensor.detach().contiguous().cpu()
        for key, tensor in draft.state_dict().items()
    }
    weights = path / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # it is written readable by its owner alone
    c = draft.config
    config = {
        "architectures": ["ViSpecDraft" if draft.adapter is not None else "EagleDraft"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "qkv_bias": c.qkv_bias,
        "vocab_size": c.vocab_size,
        "dtype": str(draft.dtype).removeprefix("torch."),
        **extra,
    }
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def geometry(config: Mapping[str, Any], name: str = "draft") -> EagleConfig:
    """The draft's geometry from a Llama-style configuration.

    Raises:
        CheckpointError: naming the keys that are missing.
    """
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    required(config, keys, name)
    return EagleConfig(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        vocab_size=config["vocab_size"],
        num_hidden_layers=config.get("num_hidden_layers", 1),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=rope(config)[0],
    )


def _empty(config: Mapping[str, Any], shapes: Shapes, name: str) -> EagleDraft:
    c = replace(
        geometry(config, name),
        qkv_bias="layers.0.self_attn.q_proj.bias" in shapes,
        fc_bias="fc.bias" in shapes,
    )
    with torch.device("meta"):
        adapter = None
        if any(key.startswith("imadpt.") for key in shapes):
            queries = shapes.get("imadpt.q", (2,))[0]
            bias = "imadpt.k_proj.bias" in shapes
            adapter = QueryAdapter(c.hidden_size, c.num_attention_heads, queries, bias)
        embedding = None
        if "embed_tokens.weight" in shapes:
            embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        return EagleDraft(c, adapter, embedding, name)


def _rename(key: str, old: str, new: str) -> str:
    return new + key.removeprefix(old) if key.startswith(old) else key
