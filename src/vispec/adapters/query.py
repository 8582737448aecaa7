"""ViSpec's vision adapter (arXiv 2509.15235, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispec.adapters.base import Adapter, Compressed


class QueryAdapter(Adapter):
    """Learned queries cross-attend to an image; the last one's output is the global vector.

    Parameter names are those of published checkpoints.

    Args:
        hidden_size: `d`.
        heads: attention heads.
        queries: learned queries, the global one included.
        bias: biases in the key and value projections.
        beside: the draft reads every token of an image, with what the target made of it, and these
            beside them rather than in their place.
    """

    has_global = True

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        queries: int = 2,
        bias: bool = False,
        beside: bool = False,
    ) -> None:
        super().__init__(heads=heads, queries=queries, bias=bias, beside=beside)
        self.keeps = beside
        self.hides = queries == 1 and not beside
        if hidden_size % heads:
            raise ValueError(f"{heads} heads do not divide a width of {hidden_size}")
        head_dim = hidden_size // heads
        self.q = nn.Parameter(torch.randn(queries, heads, head_dim) * head_dim**-0.5)
        self.k_proj = nn.Linear(hidden_size, heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden_size, heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=False)

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        b, n, _ = visual.shape
        _, heads, head_dim = self.q.shape
        query = self.q.transpose(0, 1).expand(b, -1, -1, -1)
        key = self.k_proj(visual).view(b, n, heads, head_dim).transpose(1, 2)
        value = self.v_proj(visual).view(b, n, heads, head_dim).transpose(1, 2)
        seen = None if mask is None else mask[:, None, None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        out = self.o_proj(out.transpose(1, 2).flatten(2))
        return Compressed(out[:, :-1], out[:, -1])
