"""The format of published ViSpec drafts, and of EAGLE/EAGLE-2 drafts, which are its subset.

Tensors: `fc`, `layers.i.…` (the first without `input_layernorm`), with an adapter also `imadpt.…`
and `img_fc`, and optionally `embed_tokens`, a copy of the target's. The configuration is a Llama
one. Biases and the number of queries are facts of the tensors; no key states them reliably.

Drafts that NeMo AutoModel trains have the same parts with other names for the adapter
(`img_adaptor.…`), a norm in the first layer too, and one behind the last. They are read, and
written as they were read. Their configuration is the target's own, with the draft's layers beside.

What vispec trains may have another adapter, stated under `adapter` in the configuration and named
`adapter.…` in the files, or read several layers, stated under `aux_layers` and fused by `fuse_fc`.
No other engine reads those.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vispec.adapters import QueryAdapter, settings_of
from vispec.checkpoints.formats import (
    Plan,
    Shapes,
    decoder_config,
    facts,
    required,
    rope,
    save,
    stated_adapter,
)
from vispec.drafts.eagle import EagleConfig, EagleDraft

NETWORK = EagleDraft
_NEMO = {"adapter.q": "img_adaptor.query"}
"""What NeMo's names for the adapter do not have in common with ours, but for the prefix."""


def plan(config: Mapping[str, Any], shapes: Shapes, name: str) -> Plan | None:
    """How to load a ViSpec or EAGLE draft; None for other checkpoints."""
    if "fc.weight" not in shapes or "layers.0.self_attn.q_proj.weight" not in shapes:
        return None
    out, width = shapes["fc.weight"]
    if width >= 3 * out or "layers.0.hidden_norm.weight" in shapes:
        return None  # EAGLE-3 fuses three features
    draft = _empty(config, shapes, name)
    return Plan(
        form="vispec" if draft.adapter is not None or draft.config.aux_layers else "eagle",
        network=draft,
        published={key: _published(draft, key) for key in draft.state_dict()},
        facts=facts(config),
    )


def kind(draft: EagleDraft) -> str:
    """What people call it."""
    return "ViSpec" if draft.adapter is not None else "EAGLE"


def forms(draft: EagleDraft) -> tuple[str, ...]:
    """The formats it can be written in, some of them only in part."""
    more = draft.adapter is not None or draft.config.aux_layers or _norms(draft)
    return ("vispec", "eagle") if more else ("eagle",)


def unsaid(draft: EagleDraft, form: str) -> list[str]:
    """What of it a format has no word for."""
    if form == "vispec":
        return []
    adapter = ["a vision adapter"] if draft.adapter is not None else []
    fused = ["several layers to read"] if draft.config.aux_layers else []
    return adapter + fused + _norms(draft)


def _norms(draft: EagleDraft) -> list[str]:
    """What NeMo's drafts have and the published code does not know."""
    found = {
        "a norm in its first layer": draft.config.first_norm,
        "a norm behind its last": draft.config.final_norm,
        "a bias behind its attention": draft.config.output_bias,
    }
    return [words for words, has in found.items() if has]


def closest(draft: EagleDraft, form: str) -> tuple[EagleDraft | None, list[str]]:
    """It without its adapter, which reads images token by token; and what was left out."""
    c = draft.config
    if c.aux_layers:
        return None, []
    bare = EagleDraft(c, None, draft.embed_tokens, draft.name).to(draft.fc.weight.device)
    own = {k: v for k, v in draft.state_dict().items() if k in bare.state_dict()}
    bare.load_state_dict(own)
    said = [
        "the vision adapter and the global image vector are left out: far less is accepted of"
        " answers about images"
    ]
    if draft.img_fc is not None:
        # Without an image the global vector is zero: what is left of `img_fc` acts on the feature,
        # and so does `fc` behind it. One matrix does what both did.
        d, wide = c.hidden_size, torch.float64
        fold = draft.fc.weight[:, d:].to(wide)
        bare.fc.weight.data[:, d:] = fold @ draft.img_fc.weight[:, :d].to(wide)
        if draft.img_fc.bias is not None:
            bare.fc.bias.data += (fold @ draft.img_fc.bias.to(wide)).to(bare.fc.bias)
        said.append("what it did to text without an image is kept, folded into fc")
    return bare.to(draft.dtype), said


def write(
    draft: EagleDraft, folder: str | os.PathLike[str], form: str = "vispec", **extra: Any
) -> None:
    """Save `config.json` and `model.safetensors`.

    Args:
        draft: what to save.
        folder: is made where it does not exist.
        form: `"vispec"`, or `"eagle"` for a draft of which nothing is `unsaid` there; their files
            are the same.
        extra: further configuration entries, such as what the draft was trained for.
    """
    c = draft.config
    queries = getattr(draft.adapter, "q", ())
    own = draft.adapter if _is_own(draft) else None
    config = {
        "architectures": _architectures(draft),
        "model_type": "llama",
        **decoder_config(c),
        # Engines that know no `qkv_bias` take `attention_bias` for the output's as well.
        "qkv_bias": c.qkv_bias,
        "attention_bias": c.output_bias,
        # The published code has a bias unless told so; for others `bias` is of the attention.
        **({} if c.fc_bias else {"bias": False}),
        **({"vispec_num_query_tokens": len(queries)} if c.final_norm and len(queries) else {}),
        **({"adapter": settings_of(own)} if own is not None else {}),
        **({"aux_layers": list(c.aux_layers)} if c.aux_layers else {}),
        "dtype": str(draft.dtype).removeprefix("torch."),
        **extra,
    }
    save(folder, config, {_published(draft, k): v for k, v in draft.state_dict().items()})


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
        num_hidden_layers=config.get("draft_num_hidden_layers", config.get("num_hidden_layers", 1)),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        **rope(config),
        head_dim=config.get("head_dim") or 0,
    )


def _empty(config: Mapping[str, Any], shapes: Shapes, name: str) -> EagleDraft:
    c = replace(
        geometry(config, name),
        qkv_bias="layers.0.self_attn.q_proj.bias" in shapes,
        fc_bias="fc.bias" in shapes,
        output_bias="layers.0.self_attn.o_proj.bias" in shapes,
        first_norm="layers.0.input_layernorm.weight" in shapes,
        final_norm="norm.weight" in shapes,
        aux_layers=tuple(config.get("aux_layers") or ()),
    )
    with torch.device("meta"):
        adapter = stated_adapter(config, c.hidden_size, name)
        prefix = next(
            (p for p in ("imadpt", "img_adaptor") if any(k.startswith(f"{p}.") for k in shapes)), ""
        )
        if prefix:
            queries = shapes.get(f"{prefix}.q", shapes.get(f"{prefix}.query", (2,)))[0]
            bias = f"{prefix}.k_proj.bias" in shapes
            adapter = QueryAdapter(c.hidden_size, c.num_attention_heads, queries, bias)
        embedding = None
        if "embed_tokens.weight" in shapes:
            embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        return EagleDraft(c, adapter, embedding, name)


def _published(draft: EagleDraft, key: str) -> str:
    """A parameter's name in files."""
    if not key.startswith("adapter.") or _is_own(draft):
        return key
    if draft.config.final_norm:
        return _NEMO.get(key, key.replace("adapter.", "img_adaptor.", 1))
    return key.replace("adapter.", "imadpt.", 1)


def _is_own(draft: EagleDraft) -> bool:
    """Whether its adapter is none of the published ones, which have the decoder's heads."""
    adapter = draft.adapter
    if isinstance(adapter, QueryAdapter):
        published = adapter.settings["heads"] == draft.config.num_attention_heads
        return not published or adapter.keeps or adapter.rows
    return adapter is not None


def _architectures(draft: EagleDraft) -> list[str]:
    if draft.config.final_norm:
        return ["LlamaEagleDraftModel" if draft.adapter is None else "VispecDraftModel"]
    if draft.adapter is not None:
        return ["ViSpecDraft"]
    # SGLang knows the first, vLLM what it makes of the second; the published code reads neither.
    return ["LlamaForCausalLMEagle", "LlamaForCausalLM"]
