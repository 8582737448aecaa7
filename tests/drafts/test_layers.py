"""Rotary positions of drafts are those of Hugging Face's models with the same configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GlmConfig, LlamaConfig, Qwen2_5_VLTextConfig, Qwen3VLTextConfig
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from vispec.drafts.layers import Rotary, rotate

HEAD, THETA, POSITIONS = 16, 5e5, 64
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_scalings_are_llamas(scaling: dict[str, Any]) -> None:
    config = LlamaConfig(
        hidden_size=2 * HEAD,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        rope_parameters=scaling | {"rope_theta": THETA},
    )
    x, position = torch.randn(1, 2, 9, HEAD), torch.arange(40, 49)[None]
    cos, sin = LlamaRotaryEmbedding(config)(x, position)
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    own = Rotary(HEAD, THETA, scaling, POSITIONS)(position, x.dtype)
    torch.testing.assert_close(rotate(x, own), expected, rtol=1e-5, atol=1e-5)


def test_the_rest_of_a_head_stays_as_it_is() -> None:
    """Halves of a head are turned as a head of half the size is."""
    scaling = {"rope_type": "default", "partial_rotary_factor": 0.5}
    config = GlmConfig(
        hidden_size=2 * HEAD,
        num_attention_heads=2,
        head_dim=HEAD,
        rope_parameters=scaling | {"rope_theta": THETA},
    )
    x, position = torch.randn(1, 2, 9, HEAD), torch.arange(9)[None]
    cos, _ = GlmRotaryEmbedding(config)(x, position)
    own = Rotary(HEAD, THETA, scaling)(position, x.dtype)
    assert own[0].shape[-1] == HEAD // 2 == cos.shape[-1]
    torch.testing.assert_close(own[0][:, 0], cos)
    turned = rotate(x, own)
    assert torch.equal(turned[..., HEAD // 2 :], x[..., HEAD // 2 :])
    half = rotate(x[..., : HEAD // 2], Rotary(HEAD // 2, THETA)(position, x.dtype))
    assert torch.equal(turned[..., : HEAD // 2], half)


def test_three_positions_turn_as_qwens_do() -> None:
    scaling = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    parameters = scaling | {"rope_theta": THETA}
    geometry = {"hidden_size": 2 * HEAD, "num_attention_heads": 2, "rope_parameters": parameters}
    x, position = torch.randn(2, 2, 9, HEAD), torch.randint(50, (3, 2, 9))
    rotary = Qwen2_5_VLRotaryEmbedding(Qwen2_5_VLTextConfig(**geometry))
    expected, _ = apply_rotary_pos_emb(x, x, *rotary(x, position))
    own = Rotary(HEAD, THETA, scaling)
    torch.testing.assert_close(rotate(x, own(position, x.dtype)), expected, rtol=1e-5, atol=1e-5)
    # With the same position three times, or told once, there is nothing to tell apart.
    same = position[:1].expand(3, -1, -1)
    torch.testing.assert_close(own(same, x.dtype), own(position[0], x.dtype))


def test_interleaved_positions_turn_as_qwen3s_do() -> None:
    scaling = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLTextConfig(
        hidden_size=2 * HEAD,
        num_attention_heads=2,
        head_dim=HEAD,
        rope_parameters=scaling | {"rope_theta": THETA},
    )
    x, position = torch.randn(2, 2, 9, HEAD), torch.randint(50, (3, 2, 9))
    expected, _ = apply_rotary_pos_emb(x, x, *Qwen3VLTextRotaryEmbedding(config)(x, position))
    own = Rotary(HEAD, THETA, scaling)(position, x.dtype)
    torch.testing.assert_close(rotate(x, own), expected, rtol=1e-5, atol=1e-5)
