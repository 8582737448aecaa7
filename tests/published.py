"""Published drafts: configurations at small size, and the names and shapes of their tensors.

Keys, their nesting and names are each writer's own; sizes are not.
"""

from __future__ import annotations

from typing import Any

# --- Tensors --------------------------------------------------------------------------------------

Shapes = dict[str, tuple[int, ...]]


def attention(name: str, d: int, q: int, kv: int, inputs: int | None = None) -> Shapes:
    inputs = inputs or d
    return {
        f"{name}.self_attn.q_proj.weight": (q, inputs),
        f"{name}.self_attn.k_proj.weight": (kv, inputs),
        f"{name}.self_attn.v_proj.weight": (kv, inputs),
        f"{name}.self_attn.o_proj.weight": (d, q),
    }


def mlp(name: str, d: int, inner: int) -> Shapes:
    return {
        f"{name}.mlp.gate_proj.weight": (inner, d),
        f"{name}.mlp.up_proj.weight": (inner, d),
        f"{name}.mlp.down_proj.weight": (d, inner),
        f"{name}.post_attention_layernorm.weight": (d,),
    }


def vispec(d: int, inner: int, heads: int, kv: int, vocabulary: int, bias: bool) -> Shapes:
    head = d // heads
    tensors = {
        "embed_tokens.weight": (vocabulary, d),
        "fc.weight": (d, 2 * d),
        "fc.bias": (d,),
        "img_fc.weight": (d, 2 * d),
        "img_fc.bias": (d,),
        "imadpt.q": (2, heads, head),
        "imadpt.k_proj.weight": (d, d),
        "imadpt.v_proj.weight": (d, d),
        "imadpt.o_proj.weight": (d, d),
    }
    tensors |= attention("layers.0", d, d, kv * head) | mlp("layers.0", d, inner)
    if bias:
        tensors |= {
            "layers.0.self_attn.q_proj.bias": (d,),
            "layers.0.self_attn.k_proj.bias": (kv * head,),
            "layers.0.self_attn.v_proj.bias": (kv * head,),
        }
    return tensors


def eagle(d: int, inner: int, kv: int, vocabulary: int, bias: bool = True) -> Shapes:
    """EAGLE and EAGLE-2; the later ones have no bias in `fc`."""
    tensors: Shapes = {"embed_tokens.weight": (vocabulary, d), "fc.weight": (d, 2 * d)}
    tensors |= {"fc.bias": (d,)} if bias else {}
    return tensors | attention("layers.0", d, d, kv) | mlp("layers.0", d, inner)


def eagle3(d: int, inner: int, kv: int, vocabulary: int, own: int) -> Shapes:
    return (
        attention("midlayer", d, d, kv, 2 * d)
        | mlp("midlayer", d, inner)
        | {
            "midlayer.hidden_norm.weight": (d,),
            "midlayer.input_layernorm.weight": (d,),
            "fc.weight": (d, 3 * d),
            "norm.weight": (d,),
            "lm_head.weight": (own, d),
            "d2t": (own,),
            "t2d": (vocabulary,),
        }
    )


def dflash(d: int, inner: int, q: int, kv: int, head: int, layers: int, read: int) -> Shapes:
    tensors: Shapes = {"fc.weight": (d, read * d), "hidden_norm.weight": (d,), "norm.weight": (d,)}
    for i in range(layers):
        tensors |= attention(f"layers.{i}", d, q, kv) | mlp(f"layers.{i}", d, inner)
        tensors[f"layers.{i}.input_layernorm.weight"] = (d,)
        tensors[f"layers.{i}.self_attn.q_norm.weight"] = (head,)
        tensors[f"layers.{i}.self_attn.k_norm.weight"] = (head,)
    return tensors


# --- Configurations -------------------------------------------------------------------------------

_COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 64,
}
_EAGLE3 = _COMMON | {
    "architectures": ["LlamaForCausalLMEagle3"],
    "draft_vocab_size": 20,
    "model_type": "llama",
    "num_hidden_layers": 1,
}
_BLOCK = _COMMON | {
    "block_size": 4,
    "layer_types": ["full_attention"] * 2,
    "max_position_embeddings": 40960,
    "max_window_layers": 2,
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "num_target_layers": 8,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
}
_READ = {"mask_token_id": 63, "target_layer_ids": [1, 5]}

EAGLE = {
    "Vicuna": _COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_hidden_layers": 1,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "torch_dtype": "float16",
        "transformers_version": "4.28.1",
    },
    "Llama 3": _COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "bias": False,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_hidden_layers": 1,
        "pretraining_tp": 1,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
    },
}
EAGLE3 = {
    "official": _EAGLE3 | {"rope_theta": 500000.0, "max_position_embeddings": 2048},
    "SpecForge, Qwen2.5-VL": _EAGLE3
    | {
        "max_position_embeddings": 2048,
        "max_window_layers": 28,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
        "rope_theta": 1000000,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
    },
    "SpecForge, Qwen3-VL": _EAGLE3
    | {
        "max_position_embeddings": 262144,
        "pretraining_tp": 1,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
        "rope_theta": 5000000,
        "target_model_type": "qwen3_vl",
    },
    "AngelSlim, Qwen3-VL": _EAGLE3
    | {
        "architectures": ["Eagle3LlamaForCausalLM"],
        "image_token_id": 60,
        "max_position_embeddings": 262144,
        "modal_type": "VLM",
        "rope_scaling": {
            "type": "default",
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
        },
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "video_token_id": 61,
    },
    "SpecForge, other layers": _EAGLE3
    | {
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [1, 9, 20],
            "use_aux_hidden_state": True,
        },
    },
}
BLOCK = {
    "z-lab": _BLOCK | {"architectures": ["DFlashDraftModel"], "dflash_config": _READ},
    "SpecForge, DSpark": _BLOCK
    | {
        "architectures": ["DSparkDraftModel"],
        "auto_map": {"AutoModel": "dspark.DSparkDraftModel"},
        "dflash_config": _READ
        | {
            "projector_type": "dspark",
            "markov_rank": 6,
            "markov_head_type": "vanilla",
            "confidence_head_alpha": 1.0,
            "enable_confidence_head": True,
            "confidence_head_with_markov": True,
        },
    },
    "DeepSpec": _BLOCK
    | _READ
    | {
        "architectures": ["Qwen3DSparkModel"],
        "markov_rank": 6,
        "markov_head_type": "vanilla",
        "enable_confidence_head": True,
        "confidence_head_with_markov": True,
    },
}
