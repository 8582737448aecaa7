"""A perceiver resampler (Flamingo, arXiv 2204.14198, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vispec.adapters.base import Adapter, Compressed


class _Block(nn.Module):
    """Queries attend to an image, then think for themselves."""

    def __init__(self, hidden_size: int, heads: int, inner: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(hidden_size)
        self.visual_norm = nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, inner),
            nn.GELU(),
            nn.Linear(inner, hidden_size),
        )

    def forward(self, query: Tensor, visual: Tensor, padding: Tensor | None) -> Tensor:
        seen, asking = self.visual_norm(visual), self.query_norm(query)
        out, _ = self.attention(asking, seen, seen, key_padding_mask=padding, need_weights=False)
        query = query + out
        return query + self.mlp(query)


class ResamplerAdapter(Adapter):
    """As many tokens for an image of any size: learned queries that read it, layer by layer.

    Args:
        hidden_size: `d`.
        heads: attention heads.
        queries: tokens an image.
        inner: width of its MLPs.
        layers: how often the queries read the image.
    """

    def __init__(
        self, hidden_size: int, heads: int, queries: int, inner: int, layers: int = 1
    ) -> None:
        super().__init__(heads=heads, queries=queries, inner=inner, layers=layers)
        self.queries = nn.Parameter(torch.randn(queries, hidden_size) * hidden_size**-0.5)
        self.blocks = nn.ModuleList(_Block(hidden_size, heads, inner) for _ in range(layers))

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        query = self.queries.expand(len(visual), -1, -1)
        padding = None if mask is None else ~mask
        for block in self.blocks:
            query = block(query, visual, padding)
        return Compressed(query)
