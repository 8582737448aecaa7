"""EAGLE-3 drafts: the official format, which SpecForge and AngelSlim write too, and speculators'.

With an adapter, which only vispec reads, they are speculators' with `adapter` in the configuration.

Tensors: `fc`, `norm`, `lm_head`, and one decoder layer, `midlayer.…` officially and `layers.0.…` in
speculators' format, which may have further ones. `d2t[i]` is what is added to the draft's token `i`
to get the target's, `t2d` marks the target's tokens that the draft can say. `embed_tokens` is a
copy of the target's unless the draft was trained with its own.

Which layers are read is counted differently. Our `i` is what decoder layer `i` is given. So are
vLLM's and speculators' `eagle_aux_hidden_state_layer_ids`; those of the official format's
`eagle_config` are the layers whose outputs are read, one less, as SGLang takes them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vispec.adapters import settings_of
from vispec.checkpoints import speculators
from vispec.checkpoints.formats import (
    Plan,
    Shapes,
    decoder_config,
    empty_embedding,
    extra_shapes,
    facts,
    required,
    rope,
    save,
    stated_adapter,
    token_map,
    token_tables,
)
from vispec.drafts.eagle3 import Eagle3Config, Eagle3Draft
from vispec.errors import CheckpointError

NETWORK = Eagle3Draft
_KEYS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def plan(config: Mapping[str, Any], shapes: Shapes, name: str) -> Plan | None:
    """How to load an EAGLE-3 draft; None for other checkpoints."""
    layer = next((p for p in ("midlayer.", "layers.0.") if f"{p}hidden_norm.weight" in shapes), "")
    if "fc.weight" not in shapes or not layer:
        return None
    algorithm = speculators.kind(config)
    if algorithm not in (None, "eagle3"):
        return None
    c = geometry(config, shapes, name)
    with torch.device("meta"):
        adapter = stated_adapter(config, c.hidden_size, name)
        draft = Eagle3Draft(c, None, empty_embedding(shapes, c), name, adapter)
    official = layer == "midlayer."
    form = "speculators eagle3" if algorithm else "eagle3"
    return Plan(
        form="vispec" if adapter is not None else form,
        network=draft,
        published={
            key: key.replace("layers.0.", "midlayer.", 1) if official else key
            for key in draft.state_dict()
        },
        extra=extra_shapes(c),
        finish=_finish,
        facts=facts(config),
        required=["d2t"] if c.draft_vocab_size != c.vocab_size else [],
    )


def geometry(config: Mapping[str, Any], shapes: Shapes, name: str = "draft") -> Eagle3Config:
    """The draft's geometry; what no key states reliably is taken from the tensors.

    Raises:
        CheckpointError: naming the keys that are missing.
    """
    inner = {**config, **(config.get("transformer_layer_config") or {})}
    required(inner, _KEYS, name)
    nested = config.get("eagle_config") or {}
    stated = {**nested, **config}
    heads = inner["num_attention_heads"]
    layers = {key.split(".")[1] for key in shapes if key.startswith("layers.")} or {"0"}
    first = "midlayer" if "midlayer.hidden_norm.weight" in shapes else "layers.0"
    size = inner["hidden_size"]
    target_size = stated.get("target_hidden_size") or size
    own = config.get("eagle_aux_hidden_state_layer_ids")
    outputs = nested.get("eagle_aux_hidden_state_layer_ids")
    aux = own if own else [i + 1 for i in outputs] if outputs else None
    known = stated.get("draft_vocab_size") or inner["vocab_size"]
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
        draft_vocab_size=known,
        num_hidden_layers=len(layers),
        rms_norm_eps=inner.get("rms_norm_eps", 1e-6),
        **rope(inner),
        head_dim=inner.get("head_dim") or 0,
        target_hidden_size=target_size,
        aux_layers=tuple(aux) if aux else None,
        attention_bias=f"{first}.self_attn.q_proj.bias" in shapes,
        output_bias=f"{first}.self_attn.o_proj.bias" in shapes,
        # Of a part of the vocabulary the target has no head.
        own_head="lm_head.weight" in shapes or known != inner["vocab_size"],
        fc_bias="fc.bias" in shapes,
        qk_norm=f"{first}.self_attn.q_norm.weight" in shapes,
        norm_before_residual=bool(stated.get("norm_before_residual")),
        norm_before_fc="input_norm.weight" in shapes,
        fc_norm="fc_norm.0.weight" in shapes,
        norm_output=bool(stated.get("norm_output")),
    )


def kind(draft: Eagle3Draft) -> str:
    """What people call it."""
    return "EAGLE-3"


def forms(draft: Eagle3Draft) -> tuple[str, ...]:
    """The formats it can be written in."""
    return ("vispec",) if draft.adapter is not None else ("eagle3", "speculators")


def unsaid(draft: Eagle3Draft, form: str) -> list[str]:
    """What of it the official format cannot say, or its readers do not read."""
    if form != "eagle3":
        return []
    c = draft.config
    found = {
        "several decoder layers": c.num_hidden_layers > 1,
        "other than three layers read": c.fused != 3,
        "biases": c.attention_bias or c.output_bias or c.fc_bias,
        "no LM head of its own": not c.own_head,
        "norms of queries and keys": c.qk_norm,
        "norm_before_residual": c.norm_before_residual,
        "norm_before_fc": c.norm_before_fc,
        "a norm of every layer (fc_norm)": c.fc_norm,
        "norm_output": c.norm_output,
    }
    return [words for words, has in found.items() if has]


def closest(draft: Eagle3Draft, form: str) -> tuple[None, list[str]]:
    """Nothing of it can be left out."""
    return None, []


def write(
    draft: Eagle3Draft, folder: str | os.PathLike[str], form: str = "eagle3", **extra: Any
) -> None:
    """Save `config.json` and `model.safetensors`.

    Args:
        draft: what to save, of which nothing is `unsaid`.
        folder: is made where it does not exist.
        form: `"eagle3"`, the official format; `"speculators"`; or `"vispec"`, which is that format
            with an adapter beside it.
        extra: further configuration entries, such as the target.
    """
    official = form == "eagle3"
    if draft.adapter is not None:
        extra = {"adapter": settings_of(draft.adapter), **extra}
    tensors = {
        key.replace("layers.0.", "midlayer.", 1) if official else key: value
        for key, value in draft.state_dict().items()
    }
    if draft.token_map is not None:
        tensors |= token_tables(draft.token_map, draft.config.vocab_size)
    save(folder, _official(draft, extra) if official else _speculators(draft, extra), tensors)


def _finish(draft: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    assert isinstance(draft, Eagle3Draft)
    c = draft.config
    draft.token_map = token_map(tensors, c.draft_vocab_size, c.vocab_size, draft.name)


def _official(draft: Eagle3Draft, extra: Mapping[str, Any]) -> dict[str, Any]:
    c, read = draft.config, {}
    if c.aux_layers is not None:
        read = {
            # vLLM reads the one, SGLang the other.
            "eagle_aux_hidden_state_layer_ids": list(c.aux_layers),
            "eagle_config": {
                "eagle_aux_hidden_state_layer_ids": [i - 1 for i in c.aux_layers],
                "use_aux_hidden_state": True,
            },
        }
    sized = c.target_hidden_size != c.hidden_size
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **decoder_config(c),
        "draft_vocab_size": c.draft_vocab_size,
        **({"target_hidden_size": c.target_hidden_size} if sized else {}),
        **read,
        "tie_word_embeddings": False,
        "dtype": str(draft.dtype).removeprefix("torch."),
        **extra,
    }


def _speculators(draft: Eagle3Draft, extra: Mapping[str, Any]) -> dict[str, Any]:
    c = draft.config
    return speculators.configuration(
        "eagle3",
        "Eagle3DraftModel",
        c,
        layer_type="qwen3" if c.qk_norm else "llama",
        tokens=3,
        dtype=draft.dtype,
        own={
            "eagle_aux_hidden_state_layer_ids": list(c.aux_layers) if c.aux_layers else None,
            "norm_before_residual": c.norm_before_residual,
            "norm_before_fc": c.norm_before_fc,
            "fc_norm": c.fc_norm,
            "norm_output": c.norm_output,
            "embed_requires_grad": False,
        },
        extra=extra,
    )
