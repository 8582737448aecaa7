"""Block drafts: DFlash (z-lab's format), DSpark (DeepSpec's), and speculators' format of both.

Tensors: `fc`, `hidden_norm`, `norm`, `layers.i.…` like Qwen3's; DSpark's have `markov_head` and
`confidence_head` besides. `embed_tokens` and `lm_head` are copies of the target's where they are
there, but for a reduced vocabulary, whose head and mapping (`d2t`, `t2d`) belong to the draft.

Which layers are read is counted differently. Our `i` is what decoder layer `i` is given. So are
speculators' `aux_hidden_state_layer_ids`; z-lab's and DeepSpec's `target_layer_ids` are the layers
whose outputs are read, one less.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vispec.checkpoints import speculators
from vispec.checkpoints.formats import (
    Plan,
    Shapes,
    decoder_config,
    empty_embedding,
    extra_shapes,
    facts,
    positive,
    required,
    rope,
    save,
    token_map,
    token_tables,
)
from vispec.drafts.block import BlockConfig, BlockNetwork

NETWORK = BlockNetwork
_KEYS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def plan(config: Mapping[str, Any], shapes: Shapes, name: str) -> Plan | None:
    """How to load a block draft; None for other checkpoints."""
    algorithm = speculators.kind(config)
    has_body = {"fc.weight", "hidden_norm.weight", "layers.0.self_attn.q_norm.weight"} <= set(
        shapes
    )
    if not has_body or algorithm not in (None, "dflash", "dspark"):
        return None
    c = geometry(config, shapes, name)
    with torch.device("meta"):
        network = BlockNetwork(c, empty_embedding(shapes, c), name)
    form = "dspark" if c.markov_rank or c.confidence or algorithm == "dspark" else "dflash"
    return Plan(
        form=f"speculators {form}" if algorithm else form,
        network=network,
        published={key: key for key in network.state_dict()},
        extra=extra_shapes(c),
        finish=_finish,
        facts=facts(config),
        required=["d2t"] if c.draft_vocab_size != c.vocab_size else [],
    )


def geometry(config: Mapping[str, Any], shapes: Shapes, name: str = "draft") -> BlockConfig:
    """The draft's geometry; what no key states reliably is taken from the tensors.

    Raises:
        CheckpointError: naming the keys that are missing.
    """
    inner = {**config, **(config.get("transformer_layer_config") or {})}
    # Older checkpoints state these at the top, newer ones inside.
    stated = {**(config.get("dflash_config") or {}), **config}
    direct = speculators.kind(config) is not None
    read = "aux_hidden_state_layer_ids" if direct else "target_layer_ids"
    required(inner, _KEYS, name)
    required(stated, ("block_size", read, "mask_token_id"), name)
    ids = [int(i) for i in stated[read]]
    heads = inner["num_attention_heads"]
    rank = shapes.get("markov_head.markov_w1.weight", (0, 0))[1]
    size, known = inner["hidden_size"], stated.get("draft_vocab_size") or inner["vocab_size"]
    confidence = shapes.get("confidence_head.proj.weight")
    layers = {key.split(".")[1] for key in shapes if key.startswith("layers.")}
    is_dspark = rank > 0 or confidence is not None or speculators.kind(config) == "dspark"
    return BlockConfig(
        hidden_size=size,
        intermediate_size=inner["intermediate_size"],
        num_attention_heads=heads,
        num_key_value_heads=inner.get("num_key_value_heads") or heads,
        vocab_size=inner["vocab_size"],
        draft_vocab_size=known,
        block_size=positive(stated, "block_size", name),
        mask_token_id=stated["mask_token_id"],
        aux_layers=tuple(ids if direct else [i + 1 for i in ids]),
        num_hidden_layers=len(layers),
        rms_norm_eps=inner.get("rms_norm_eps", 1e-6),
        **rope(inner),
        head_dim=inner.get("head_dim") or 0,
        target_hidden_size=stated.get("target_hidden_size") or 0,
        target_layers=stated.get("num_target_layers") or 0,
        attention_bias="layers.0.self_attn.q_proj.bias" in shapes,
        output_bias="layers.0.self_attn.o_proj.bias" in shapes,
        # Of a part of the vocabulary the target has no head.
        own_head="lm_head.weight" in shapes or known != inner["vocab_size"],
        sample_from_anchor=bool(stated.get("sample_from_anchor", is_dspark)),
        markov_rank=rank,
        markov_kind=(
            "gated"
            if "markov_head.gate_proj.weight" in shapes
            else "rnn"
            if "markov_head.joint_proj.weight" in shapes
            else "vanilla"
        ),
        confidence=(
            None
            if confidence is None
            else "hidden"
            if confidence[1] == size
            else "hidden and token"
        ),
    )


def kind(network: BlockNetwork) -> str:
    """What people call it."""
    return "DSpark" if _heads(network.config) else "DFlash"


def forms(network: BlockNetwork) -> tuple[str, ...]:
    """The formats it can be written in, some of them only in part."""
    return (
        ("dspark", "dflash", "speculators") if _heads(network.config) else ("dflash", "speculators")
    )


def unsaid(network: BlockNetwork, form: str) -> list[str]:
    """What of it a format has no word for."""
    if form == "speculators":
        return []
    c, dspark = network.config, form == "dspark"
    found = {
        "a Markov head": not dspark and network.markov_head is not None,
        "a confidence head": not dspark and network.confidence_head is not None,
        "a part of the vocabulary": network.token_map is not None,
        "a guess at the last accepted token's own row": c.sample_from_anchor and not dspark,
        "no guess at the last accepted token's own row": dspark and not c.sample_from_anchor,
    }
    return [words for words, has in found.items() if has]


def closest(network: BlockNetwork, form: str) -> tuple[BlockNetwork | None, list[str]]:
    """It without DSpark's heads, for DFlash's format; and what was left out."""
    heads = [name for name in ("markov_head", "confidence_head") if getattr(network, name)]
    if form != "dflash" or not heads:
        return None, []
    bare = BlockNetwork(
        replace(network.config, markov_rank=0, confidence=None), network.embed_tokens, network.name
    )
    own = {k: v for k, v in network.state_dict().items() if k in bare.state_dict()}
    bare.load_state_dict(own)
    bare.token_map = network.token_map
    return bare.to(network.fc.weight.dtype), [f"the {' and the '.join(heads)} are left out"]


def write(
    network: BlockNetwork, folder: str | os.PathLike[str], form: str = "dflash", **extra: Any
) -> None:
    """Save `config.json` and `model.safetensors`.

    Args:
        network: what to save, of which nothing is `unsaid`.
        folder: is made where it does not exist.
        form: `"dflash"`, `"dspark"` or `"speculators"`.
        extra: further configuration entries, such as the target.
    """
    tensors = dict(network.state_dict())
    if network.token_map is not None:
        tensors |= token_tables(network.token_map, network.config.vocab_size)
    save(folder, (_speculators if form == "speculators" else _own)(network, extra), tensors)


def _own(network: BlockNetwork, extra: Mapping[str, Any]) -> dict[str, Any]:
    """z-lab's configuration of a DFlash draft, DeepSpec's of a DSpark draft."""
    c, heads = network.config, _heads(network.config)
    read = {"target_layer_ids": [i - 1 for i in c.aux_layers]}
    sized = c.target_hidden_size != c.hidden_size
    return {
        "architectures": ["Qwen3DSparkModel" if heads else "DFlashDraftModel"],
        "model_type": "qwen3",
        **decoder_config(c),
        "attention_bias": c.attention_bias,
        **({"target_hidden_size": c.target_hidden_size} if sized else {}),
        **({"num_target_layers": c.target_layers} if c.target_layers else {}),
        "block_size": c.block_size,
        **(
            {"mask_token_id": c.mask_token_id, **read, **heads}
            if heads
            else {"dflash_config": {"mask_token_id": c.mask_token_id, **read}}
        ),
        "dtype": str(network.fc.weight.dtype).removeprefix("torch."),
        **extra,
    }


def _speculators(network: BlockNetwork, extra: Mapping[str, Any]) -> dict[str, Any]:
    c, heads = network.config, _heads(network.config)
    return speculators.configuration(
        "dspark" if heads else "dflash",
        "DSparkDraftModel" if heads else "DFlashDraftModel",
        c,
        layer_type="qwen3",
        tokens=c.block_size - (not c.sample_from_anchor),
        dtype=network.fc.weight.dtype,
        own={
            "aux_hidden_state_layer_ids": list(c.aux_layers),
            "sample_from_anchor": c.sample_from_anchor,
            **({"num_target_layers": c.target_layers} if c.target_layers else {}),
            "block_size": c.block_size,
            "mask_token_id": c.mask_token_id,
            **heads,
        },
        extra=extra,
    )


def _heads(c: BlockConfig) -> dict[str, Any]:
    """What is said of DSpark's heads; nothing where there are none."""
    if not (c.markov_rank or c.confidence):
        return {}
    return {
        "markov_rank": c.markov_rank,
        "markov_head_type": c.markov_kind,
        "enable_confidence_head": c.confidence is not None,
        "confidence_head_with_markov": c.confidence == "hidden and token",
    }


def _finish(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    assert isinstance(network, BlockNetwork)
    c = network.config
    network.token_map = token_map(tensors, c.draft_vocab_size, c.vocab_size, network.name)
