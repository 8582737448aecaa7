"""The decoder draft of EAGLE (arXiv 2401.15077), and of ViSpec (arXiv 2509.15235) with an adapter.

Its features are the target's last hidden states, and the target's own LM head reads them.

Shapes: `b` requests, `n` rows, `d` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vispec.adapters.base import Adapter
from vispec.decoding.cache import SlotCache
from vispec.drafts.layers import Attention, Mlp, Rotary, Rotation
from vispec.drafts.sequential import SequentialDraft
from vispec.targets.base import Target


@dataclass(frozen=True)
class EagleConfig:
    """The draft's geometry, under the names of Hugging Face's Llama configuration.

    Attributes:
        max_position_embeddings: 0 where that is not stated.
        head_dim: size of a head; hidden size over heads where it is 0.
        first_norm: a norm before the first layer's attention, which EAGLE leaves out.
        final_norm: a norm behind the last layer; its output is the guessed feature.
        aux_layers: whose hidden states are read, fused by one matrix, in place of the last ones.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    num_hidden_layers: int = 1
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    max_position_embeddings: int = 0
    qkv_bias: bool = False
    fc_bias: bool = True
    head_dim: int = 0
    output_bias: bool = False
    first_norm: bool = False
    final_norm: bool = False
    aux_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.head_dim:
            head_dim = self.hidden_size // self.num_attention_heads
            object.__setattr__(self, "head_dim", head_dim)


class _Layer(nn.Module):
    """A Llama decoder layer; the first one mostly has no norm before its attention."""

    def __init__(self, config: EagleConfig, index: int) -> None:
        super().__init__()
        c = config
        heads = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.self_attn = Attention(
            c.hidden_size, *heads, bias=c.qkv_bias, output_bias=c.output_bias
        )
        self.mlp = Mlp(c.hidden_size, c.intermediate_size)
        has_norm = index or c.first_norm
        self.input_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps) if has_norm else None
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.index = index

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, cache: SlotCache | None
    ) -> Tensor:
        normed = x if self.input_layernorm is None else self.input_layernorm(x)
        x = x + self.self_attn(normed, rotation, mask, cache, self.index)
        return x + self.mlp(self.post_attention_layernorm(x))


class EagleDraft(SequentialDraft):
    """EAGLE, or ViSpec when given an adapter.

    Args:
        config: geometry.
        adapter: compresses images; None reads every image token like text.
        embedding: the draft's own token embedding, where a checkpoint brings one that differs
            from the target's; None shares the target's.
        name: what messages call it.
    """

    def __init__(
        self,
        config: EagleConfig,
        adapter: Adapter | None = None,
        embedding: nn.Embedding | None = None,
        name: str = "eagle",
    ) -> None:
        d = config.hidden_size
        super().__init__(d, config.vocab_size, adapter, embedding, name, bias=config.fc_bias)
        self.config = config
        self.fc = nn.Linear(2 * d, d, bias=config.fc_bias)
        layers = len(config.aux_layers)
        self.fuse_fc = nn.Linear(layers * d, d, bias=False) if layers else None
        self.layers = nn.ModuleList(_Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(d, config.rms_norm_eps) if config.final_norm else None
        self._rotary = Rotary(
            config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings
        )

    def feature_layers(self, target: Target) -> Sequence[int]:
        return self.config.aux_layers

    def fuse(self, features: Tensor) -> Tensor:
        return features if self.fuse_fc is None else self.fuse_fc(features)

    def cache_shapes(self) -> list[tuple[int, int]]:
        return [(self.config.num_key_value_heads, self.config.head_dim)] * len(self.layers)

    def combine(self, embedding: Tensor, feature: Tensor, globals_: Tensor) -> Tensor:
        """`fc(cat[embedding, img_fc(cat[feature, g])])`, all `[…, d]`."""
        return self.fc(torch.cat([embedding, self.join(feature, globals_)], -1))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        mask: Tensor | None = None,
        cache: SlotCache | None = None,
    ) -> Tensor:
        rotation = self._rotary(position, x.dtype)
        for layer in self.layers:
            x = layer(x, rotation, mask, cache)
        return x if self.norm is None else self.norm(x)
