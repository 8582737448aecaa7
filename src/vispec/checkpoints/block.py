"""Block drafts: DFlash (z-lab's format), DSpark (DeepSpec's), and speculators' format of both.

Tensors: `fc`, `hidden_norm`, `norm`, `layers.i.…` like Qwen3's; DSpark's have `markov_head` and
`confidence_head` besides. `embed_tokens` and `lm_head` are copies of the target's where they are
there, but for a reduced vocabulary, whose head and mapping (`d2t`, `t2d`) belong to the draft.

Which layers are read is counted differently. Our `i` is what decoder layer `i` is given. So are
speculators' `aux_hidden_state_layer_ids`; z-lab's and DeepSpec's `target_layer_ids` are the layers
whose outputs are read, one less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vispec.checkpoints.eagle3 import facts
from vispec.checkpoints.formats import Plan, Shapes, empty_embedding, required, rope
from vispec.drafts.block import BlockConfig, BlockNetwork
from vispec.errors import CheckpointError

_KEYS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
SPECULATORS = ("dflash", "dspark")


def plan(config: Mapping[str, Any], shapes: Shapes, name: str) -> Plan | None:
    """How to load a block draft; None for other checkpoints."""
    kind = config.get("speculators_model_type")
    has_body = {"fc.weight", "hidden_norm.weight", "layers.0.self_attn.q_norm.weight"} <= set(
        shapes
    )
    if not has_body or (kind is not None and kind not in SPECULATORS):
        return None
    c = geometry(config, shapes, name)
    with torch.device("meta"):
        network = BlockNetwork(c, empty_embedding(shapes), name)
    form = "dspark" if c.markov_rank or c.confidence or kind == "dspark" else "dflash"
    return Plan(
        form=f"speculators {form}" if kind else form,
        network=network,
        published={key: key for key in network.state_dict()},
        extra={
            "d2t": (c.draft_vocab_size,),
            "t2d": (c.vocab_size,),
            "verifier_norm.weight": (c.hidden_size,),
            "verifier_lm_head.weight": (c.draft_vocab_size, c.hidden_size),
        },
        finish=_finish,
        facts=facts(config),
    )


def geometry(config: Mapping[str, Any], shapes: Shapes, name: str = "draft") -> BlockConfig:
    """The draft's geometry; what no key states reliably is taken from the tensors.

    Raises:
        CheckpointError: naming the keys that are missing.
    """
    inner = {**config, **(config.get("transformer_layer_config") or {})}
    # Older checkpoints state these at the top, newer ones inside.
    stated = {**(config.get("dflash_config") or {}), **config}
    speculators = config.get("speculators_model_type") is not None
    read = "aux_hidden_state_layer_ids" if speculators else "target_layer_ids"
    required(inner, _KEYS, name)
    required(stated, ("block_size", read, "mask_token_id"), name)
    ids = [int(i) for i in stated[read]]
    heads, (theta, scaling) = inner["num_attention_heads"], rope(inner)
    rank = shapes.get("markov_head.markov_w1.weight", (0, 0))[1]
    size, draft_vocabulary = inner["hidden_size"], stated.get("draft_vocab_size")
    confidence = shapes.get("confidence_head.proj.weight")
    layers = {key.split(".")[1] for key in shapes if key.startswith("layers.")}
    return BlockConfig(
        hidden_size=size,
        intermediate_size=inner["intermediate_size"],
        num_attention_heads=heads,
        num_key_value_heads=inner.get("num_key_value_heads") or heads,
        vocab_size=inner["vocab_size"],
        draft_vocab_size=draft_vocabulary or inner["vocab_size"],
        block_size=stated["block_size"],
        mask_token_id=stated["mask_token_id"],
        aux_layers=tuple(ids if speculators else [i + 1 for i in ids]),
        num_hidden_layers=len(layers),
        rms_norm_eps=inner.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        head_dim=inner.get("head_dim") or 0,
        target_hidden_size=stated.get("target_hidden_size") or 0,
        target_layers=stated.get("num_target_layers") or 0,
        attention_bias="layers.0.self_attn.q_proj.bias" in shapes,
        output_bias="layers.0.self_attn.o_proj.bias" in shapes,
        own_head="lm_head.weight" in shapes,
        sample_from_anchor=bool(stated.get("sample_from_anchor", rank > 0)),
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


def _finish(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    assert isinstance(network, BlockNetwork)
    c = network.config
    if c.draft_vocab_size == c.vocab_size:
        return
    missing = [key for key in ("d2t", "lm_head.weight") if key not in tensors]
    if missing:
        raise CheckpointError(
            network.name, "knows only a part of the vocabulary but lacks its own", missing=missing
        )
    network.token_map = torch.arange(c.draft_vocab_size) + tensors["d2t"].long()
