"""What stands between an image and a draft.

Shapes: `b` images, `n` visual tokens, `r` tokens of them for the draft, `d` hidden size.

Images of different sizes go through together: shorter ones are padded behind their last token, and
a mask says what is padding. What an adapter makes of an image never depends on its padding, nor on
the other images of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Compressed:
    """Images as the draft sees them.

    Attributes:
        tokens: `[b, r, d]`, they enter the draft's decoder layer in the image's place.
        globals: `[b, d]`, one vector joined to every later text position, or None.
        mask: `[b, r]`, False behind an image's own last token; None where all have `r`.
        loss: `[b]`, what the adapter itself wants to be small; None where it wants nothing.
    """

    tokens: Tensor
    globals: Tensor | None = None
    mask: Tensor | None = None
    loss: Tensor | None = None

    def counts(self) -> Tensor:
        """`[b]`, how many tokens each image has."""
        b, r, _ = self.tokens.shape
        if self.mask is None:
            return self.tokens.new_full((b,), r).long()
        return self.mask.sum(1)


def mean_of(visual: Tensor, mask: Tensor | None) -> Tensor:
    """`[b, d]`, the mean of each image's real tokens; shapes as of `Adapter.forward`."""
    if mask is None:
        return visual.mean(1)
    return (visual * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def emphasised(tokens: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    """Tokens `[b, r, d]`, as far from their images' means `[b, d]` as weights `[b, r]` say.

    One leaves a token as it is. A token times its weight would teach nothing where a draft's first
    norm takes its size away, as EAGLE-3's does.
    """
    return tokens + (weight - 1)[..., None] * (tokens - mean[:, None])


class Adapter(nn.Module):
    """Maps an image's embeddings to tokens for the draft and, optionally, one global vector.

    Args:
        settings: what it was built with beside the hidden size, fit for JSON; see `build`.
    """

    has_global: bool = False
    """Whether it makes a global vector."""
    asks: bool = False
    """Whether it looks at what is asked."""
    keeps: bool = False
    """Whether the draft reads an image's own tokens too, before what is made of them."""
    hides: bool = False
    """Whether it may leave nothing of an image."""
    rows: bool = False
    """Whether it is given the draft's rows, in which the target's features are, rather than
    embeddings alone; any adapter can be built so."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        """Compress images.

        Args:
            visual: `[b, n, d]` their embeddings, or the draft's rows of them.
            mask: `[b, n]`, False at padding, which comes last.
            question: `[b, d]`, what is asked of each: the mean embedding of the prompt's text.
        """
        raise NotImplementedError
