"""What drafts are built of: attention, a gated MLP and rotary positions, as Llama has them.

Shapes: `b` requests, `n` rows, `d` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from vispec.decoding.cache import SlotCache

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, `[b, 1, n, m]` each, of the `m` dimensions of a head that are turned."""


class Attention(nn.Module):
    """Attention with grouped key/value heads; parameter names are Llama's.

    Args:
        width: of the rows that come out, `d`.
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: size of a head.
        inputs: width of the rows that go in; `d` by default.
        bias: biases of queries, keys and values.
        output_bias: a bias of what comes out.
        norm_eps: norms of queries and keys (Qwen3's), where given.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        inputs: int | None = None,
        bias: bool = False,
        output_bias: bool = False,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        inputs = inputs or width
        self.heads, self.kv_heads = heads, kv_heads
        self.q_proj = nn.Linear(inputs, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(inputs, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(inputs, kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=output_bias)
        self.q_norm = nn.RMSNorm(head_dim, norm_eps) if norm_eps else None
        self.k_norm = nn.RMSNorm(head_dim, norm_eps) if norm_eps else None

    def query(self, x: Tensor, rotation: Rotation) -> Tensor:
        """`[b, heads, n, head_dim]` of rows `[b, n, inputs]`."""
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return rotate(q if self.q_norm is None else self.q_norm(q), rotation)

    def key_value(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """`[b, kv_heads, n, head_dim]` each."""
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        return rotate(k if self.k_norm is None else self.k_norm(k), rotation), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """`[b, n, d]`."""
        if self.kv_heads != self.heads:
            k = k.repeat_interleave(self.heads // self.kv_heads, 1)
            v = v.repeat_interleave(self.heads // self.kv_heads, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        mask: Tensor | None,
        cache: SlotCache | None,
        layer: int,
    ) -> Tensor:
        """Rows that see themselves, what a cache holds, and each other as the mask says."""
        q, (k, v) = self.query(x, rotation), self.key_value(x, rotation)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        return self.attend(q, k, v, mask, mask is None)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Rotary:
    """Rotary positions of one dimension.

    No module: casting a draft to half precision must not touch the frequencies, and they are not
    on the meta device when the rest is.

    Args:
        head_dim: size of a head.
        theta: base of the frequencies.
        scaling: as a Hugging Face configuration states it, with `partial_rotary_factor` where only
            the first part of a head is turned, and `mrope_section` where a token may have three
            positions (M-RoPE, arXiv 2409.12191).
        max_positions: that the draft is made for, which some scalings start from; 0 if not stated.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        scaling: Mapping[str, Any] | None = None,
        max_positions: int = 0,
    ) -> None:
        self.scale, stated = 1.0, dict(scaling or {})
        self.axis = _axes(stated)
        kind = stated.get("rope_type") or stated.get("type") or "default"
        if kind in ("default", "mrope"):
            turned = int(head_dim * stated.get("partial_rotary_factor", 1.0))
            half = torch.arange(0, turned, 2, dtype=torch.float32, device="cpu")
            self.frequency = theta ** (-half / turned)
            return
        config = LlamaConfig(
            head_dim=head_dim,
            hidden_size=head_dim,
            num_attention_heads=1,
            rope_parameters={**stated, "rope_type": kind, "rope_theta": theta},
            **({"max_position_embeddings": max_positions} if max_positions else {}),
        )
        with torch.device("cpu"):
            self.frequency, self.scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))

    def __call__(self, position: Tensor, dtype: torch.dtype) -> Rotation:
        """For positions `[b, n]`, or `[3, b, n]` of time, height and width."""
        if self.frequency.device != position.device:
            self.frequency = self.frequency.to(position.device)
        angle = position[..., None].float() * self.frequency
        if position.ndim == 3 and self.axis is not None:
            axis = self.axis.to(position.device).expand(1, *angle.shape[1:])
            angle = angle.gather(0, axis)[0]
        angle = torch.cat([angle, angle], -1)[:, None]
        cos, sin = angle.cos(), angle.sin()
        if self.scale != 1.0:
            cos, sin = cos * self.scale, sin * self.scale
        return cos.to(dtype), sin.to(dtype)


def _axes(scaling: Mapping[str, Any]) -> Tensor | None:
    """Which of three positions each frequency turns by, `[m / 2]`; None where there is one."""
    sections = scaling.get("mrope_section")
    if not sections:
        return None
    axis = [number for number, size in enumerate(sections) for _ in range(size)]
    if scaling.get("mrope_interleaved"):
        axis = [0] * len(axis)
        for number in (1, 2):
            places = range(number, 3 * sections[number], 3)
            axis = [number if i in places else other for i, other in enumerate(axis)]
    return torch.tensor(axis, device="cpu")


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn heads `[b, heads, n, head_dim]`, or the first part of each, by their positions."""
    cos, sin = rotation
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat([rotate(x[..., :turned], rotation), x[..., turned:]], -1)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
