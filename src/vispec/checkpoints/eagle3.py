"""EAGLE-3 drafts: the official format, which SpecForge and AngelSlim write too, and speculators'.

Tensors: `fc`, `norm`, `lm_head`, and one decoder layer, `midlayer.…` officially and `layers.0.…` in
speculators' format, which may have further ones. `d2t[i]` is what is added to the draft's token `i`
to get the target's, `t2d` marks the target's tokens that the draft can say. `embed_tokens` is a
copy of the target's unless the draft was trained with its own.

Which layers are read is counted differently. Our `i` is what decoder layer `i` is given. So are
speculators' `eagle_aux_hidden_state_layer_ids`; in the official format's `eagle_config` they are
the layers whose outputs are read, one less.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vispec.checkpoints.formats import Plan, Shapes, empty_embedding, required, rope
from vispec.drafts.eagle3 import Eagle3Config, Eagle3Draft
from vispec.errors import CheckpointError

_KEYS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def plan(config: Mapping[str, Any], shapes: Shapes, name: str) -> Plan | None:
    """How to load an EAGLE-3 draft; None for other checkpoints."""
    layer = next((p for p in ("midlayer.", "layers.0.") if f"{p}hidden_norm.weight" in shapes), "")
    if "fc.weight" not in shapes or not layer:
        return None
    speculators = config.get("speculators_model_type") is not None
    if speculators and config["speculators_model_type"] != "eagle3":
        return None
    c = geometry(config, shapes, name)
    with torch.device("meta"):
        draft = Eagle3Draft(c, None, empty_embedding(shapes), name)
    official = layer == "midlayer."
    return Plan(
        form="speculators eagle3" if speculators else "eagle3",
        network=draft,
        published={
            key: key.replace("layers.0.", "midlayer.", 1) if official else key
            for key in draft.state_dict()
        },
        extra={
            "d2t": (c.draft_vocab_size,),
            "t2d": (c.vocab_size,),
            "verifier_norm.weight": (c.hidden_size,),
            "verifier_lm_head.weight": (c.draft_vocab_size, c.hidden_size),
        },
        finish=_finish,
        facts=facts(config),
    )


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says its draft was trained for."""
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    stated = {"target": config.get("target") or verifier.get("name_or_path")}
    return {key: value for key, value in (stated | {"tree": config.get("tree")}).items() if value}


def geometry(config: Mapping[str, Any], shapes: Shapes, name: str = "draft") -> Eagle3Config:
    """The draft's geometry; what no key states reliably is taken from the tensors.

    Raises:
        CheckpointError: naming the keys that are missing.
    """
    inner = {**config, **(config.get("transformer_layer_config") or {})}
    required(inner, _KEYS, name)
    nested = config.get("eagle_config") or {}
    stated = {**nested, **config}
    heads, theta = inner["num_attention_heads"], rope(inner)
    layers = {key.split(".")[1] for key in shapes if key.startswith("layers.")} or {"0"}
    first = "midlayer" if "midlayer.hidden_norm.weight" in shapes else "layers.0"
    size = inner["hidden_size"]
    target_size = stated.get("target_hidden_size") or size
    own = config.get("eagle_aux_hidden_state_layer_ids")
    outputs = nested.get("eagle_aux_hidden_state_layer_ids")
    aux = own if own else [i + 1 for i in outputs] if outputs else None
    fused = shapes["fc.weight"][-1] // target_size
    if aux is None and fused != 3:
        raise CheckpointError(
            name, f"fuses {fused} layers of size {target_size} but does not say which"
        )
    return Eagle3Config(
        hidden_size=size,
        intermediate_size=inner["intermediate_size"],
        num_attention_heads=heads,
        num_key_value_heads=inner.get("num_key_value_heads") or heads,
        vocab_size=inner["vocab_size"],
        draft_vocab_size=stated.get("draft_vocab_size") or inner["vocab_size"],
        num_hidden_layers=len(layers),
        rms_norm_eps=inner.get("rms_norm_eps", 1e-6),
        rope_theta=theta[0],
        rope_scaling=theta[1],
        head_dim=inner.get("head_dim") or 0,
        target_hidden_size=target_size,
        aux_layers=tuple(aux) if aux else None,
        attention_bias=f"{first}.self_attn.q_proj.bias" in shapes,
        output_bias=f"{first}.self_attn.o_proj.bias" in shapes,
        own_head="lm_head.weight" in shapes,
        fc_bias="fc.bias" in shapes,
        qk_norm=f"{first}.self_attn.q_norm.weight" in shapes,
        norm_before_residual=bool(stated.get("norm_before_residual")),
        norm_before_fc="input_norm.weight" in shapes,
        fc_norm="fc_norm.0.weight" in shapes,
        norm_output=bool(stated.get("norm_output")),
    )


def write(
    draft: Eagle3Draft, folder: str | os.PathLike[str], *, speculators: bool = False, **extra: Any
) -> None:
    """Save `config.json` and `model.safetensors`.

    Args:
        draft: what to save.
        folder: is made where it does not exist.
        speculators: in their format instead of the official one; `target` is then needed.
        extra: further configuration entries, such as the target.

    Raises:
        CheckpointError: for what the official format cannot say.
    """
    c, path = draft.config, Path(folder)
    if not speculators:
        unsaid = [
            key
            for key, value in {
                "several decoder layers": c.num_hidden_layers > 1,
                "norms of queries and keys": c.qk_norm,
                "a norm of every layer (fc_norm)": c.fc_norm,
                "norm_output": c.norm_output,
            }.items()
            if value
        ]
        if unsaid:
            raise CheckpointError(
                draft.name,
                f"has what the official EAGLE-3 format has no word for: {', '.join(unsaid)}",
                fix="Export it with --format speculators.",
            )
    tensors = {
        key if speculators else key.replace("layers.0.", "midlayer.", 1): value
        for key, value in draft.state_dict().items()
    }
    if draft.token_map is not None:
        place = torch.arange(c.draft_vocab_size, device=draft.token_map.device)
        tensors["d2t"] = draft.token_map - place
        known = torch.zeros(c.vocab_size, dtype=torch.bool, device=draft.token_map.device)
        tensors["t2d"] = known.index_fill(0, draft.token_map, True)
    path.mkdir(parents=True, exist_ok=True)
    weights = path / "model.safetensors"
    whole = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    save_file(whole, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    made = _speculators(draft, extra) if speculators else _official(draft, extra)
    (path / "config.json").write_text(json.dumps(made, indent=2) + "\n")


def _finish(draft: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    assert isinstance(draft, Eagle3Draft)
    c = draft.config
    if "d2t" in tensors and c.draft_vocab_size != c.vocab_size:
        draft.token_map = torch.arange(c.draft_vocab_size) + tensors["d2t"].long()
    elif c.draft_vocab_size != c.vocab_size:
        raise CheckpointError(
            draft.name,
            "knows only a part of the vocabulary but does not say which",
            missing=["d2t"],
        )


def _layer_config(draft: Eagle3Draft) -> dict[str, Any]:
    c = draft.config
    return {
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "attention_bias": c.attention_bias,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "vocab_size": c.vocab_size,
    } | ({"rope_scaling": dict(c.rope_scaling)} if c.rope_scaling else {})


def _official(draft: Eagle3Draft, extra: Mapping[str, Any]) -> dict[str, Any]:
    c = draft.config
    read = {}
    if c.aux_layers is not None:
        ids = [i - 1 for i in c.aux_layers]
        read = {
            "eagle_config": {
                "eagle_aux_hidden_state_layer_ids": ids,
                "use_aux_hidden_state": True,
            }
        }
    sized = c.target_hidden_size != c.hidden_size
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **_layer_config(draft),
        "draft_vocab_size": c.draft_vocab_size,
        **({"target_hidden_size": c.target_hidden_size} if sized else {}),
        **({"norm_before_residual": True} if c.norm_before_residual else {}),
        **read,
        "tie_word_embeddings": False,
        "dtype": str(draft.dtype).removeprefix("torch."),
        **extra,
    }


def _speculators(draft: Eagle3Draft, extra: Mapping[str, Any]) -> dict[str, Any]:
    c, more = draft.config, dict(extra)
    kind = "qwen3" if c.qk_norm else "llama"
    return {
        "architectures": ["Eagle3Speculator"],
        "model_type": "speculators",
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": more.pop("depth", 3)}
            ],
            "verifier": {
                "name_or_path": more.pop("target", None),
                "architectures": more.pop("target_architectures", []),
            },
        },
        "transformer_layer_config": {"model_type": kind, **_layer_config(draft)},
        "draft_vocab_size": c.draft_vocab_size,
        "target_hidden_size": (
            c.target_hidden_size if c.target_hidden_size != c.hidden_size else None
        ),
        "eagle_aux_hidden_state_layer_ids": list(c.aux_layers) if c.aux_layers else None,
        "norm_before_residual": c.norm_before_residual,
        "norm_before_fc": c.norm_before_fc,
        "fc_norm": c.fc_norm,
        "norm_output": c.norm_output,
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        "dtype": str(draft.dtype).removeprefix("torch."),
        **more,
    }
