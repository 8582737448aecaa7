"""What stands between an image and a draft.

Shapes: `b` images, `n` visual tokens (padded), `r` compressed tokens, `d` hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Compressed:
    """An image as the draft sees it.

    Attributes:
        tokens: `[b, r, d]`, they enter the draft's decoder layer in the image's place.
        globals: `[b, d]`, one vector joined to every later text position, or None.
    """

    tokens: Tensor
    globals: Tensor | None


class Adapter(nn.Module):
    """Maps an image's embeddings to a few tokens and, optionally, one global vector."""

    has_global: bool = False

    def forward(self, visual: Tensor, mask: Tensor | None = None) -> Compressed:
        """Compress `visual [b, n, d]`; `mask [b, n]` is False at padding."""
        raise NotImplementedError
