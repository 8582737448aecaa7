"""Rotary positions of drafts are those of Hugging Face's models with the same configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GlmConfig, LlamaConfig
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

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
