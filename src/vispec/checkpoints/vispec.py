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
from torch import Tensor, nn

from vispec.adapters.query import QueryAdapter
from vispec.checkpoints.files import read_config, read_tensors, tensor_headers
from vispec.drafts.eagle import EagleConfig, EagleDraft
from vispec.errors import CheckpointError

_ADAPTER = ("adapter.", "imadpt.")
"""Our module's prefix, and the published one."""


def recognise(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """`"vispec"` or `"eagle"` where the tensors are such a draft's, else None."""
    if "fc.weight" not in shapes or "layers.0.self_attn.q_proj.weight" not in shapes:
        return None
    out, width = shapes["fc.weight"]
    if width != 2 * out or "layers.0.hidden_norm.weight" in shapes:
        return None  # EAGLE-3 fuses three features
    return "vispec" if any(name.startswith("imadpt.") for name in shapes) else "eagle"


def read(name: str, *, label: str | None = None) -> EagleDraft:
    """Load a published draft.

    Args:
        name: folder or hub repository.
        label: what messages call it; `name` by default.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen tensors.
    """
    config = read_config(name)
    tensors = read_tensors(name)
    return from_tensors(config, tensors, label or name)


def shape_problems(name: str) -> CheckpointError | None:
    """What `read` would complain about, from the files' headers alone."""
    found = {key: shape for key, shape, _ in tensor_headers(name)}
    draft = _empty(read_config(name), found, name)
    return CheckpointError.tensors(name, found=found, expected=_expected(draft))


def read_structure(name: str) -> EagleDraft:
    """The draft on the meta device: its geometry and parameters, without its weights."""
    found = {key: shape for key, shape, _ in tensor_headers(name)}
    return _empty(read_config(name), found, name)


def from_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> EagleDraft:
    """Build a draft from a configuration and tensors under their published names."""
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    draft = _empty(config, found, name)
    error = CheckpointError.tensors(name, found=found, expected=_expected(draft))
    if error is not None:
        raise error
    ours = {_rename(key, *reversed(_ADAPTER)): tensor for key, tensor in tensors.items()}
    draft.load_state_dict(ours, strict=True, assign=True)
    return draft.eval().requires_grad_(False)


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
    required = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [key for key in required if key not in config]
    if missing:
        raise CheckpointError(name, "has a configuration without", missing=missing)
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(
            name, f"has hidden_act '{activation}'; drafts of this format use silu"
        )
    rope = config.get("rope_parameters") or {}
    return EagleConfig(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        vocab_size=config["vocab_size"],
        num_hidden_layers=config.get("num_hidden_layers", 1),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=config.get("rope_theta", rope.get("rope_theta", 10000.0)),
    )


def _empty(
    config: Mapping[str, Any], found: Mapping[str, tuple[int, ...]], name: str
) -> EagleDraft:
    c = replace(
        geometry(config, name),
        qkv_bias="layers.0.self_attn.q_proj.bias" in found,
        fc_bias="fc.bias" in found,
    )
    with torch.device("meta"):
        adapter = None
        if any(key.startswith("imadpt.") for key in found):
            queries = found.get("imadpt.q", (2,))[0]
            bias = "imadpt.k_proj.bias" in found
            adapter = QueryAdapter(c.hidden_size, c.num_attention_heads, queries, bias)
        embedding = None
        if "embed_tokens.weight" in found:
            embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        return EagleDraft(c, adapter, embedding, name)


def _expected(draft: EagleDraft) -> dict[str, tuple[int, ...]]:
    return {
        _rename(key, *_ADAPTER): tuple(tensor.shape) for key, tensor in draft.state_dict().items()
    }


def _rename(key: str, old: str, new: str) -> str:
    return new + key.removeprefix(old) if key.startswith(old) else key
