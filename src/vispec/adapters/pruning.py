"""Only the visual tokens that matter most."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vispec.adapters.base import Adapter, Compressed, emphasised, mean_of


class PruningAdapter(Adapter):
    """Keeps an image's most attended tokens, in their order.

    A learned query, turned by what is asked, attends to the image. So that it learns, a token
    stands out of its image by how much it is attended to.

    Args:
        hidden_size: `d`.
        keep: tokens an image, at most.
    """

    asks = True

    def __init__(self, hidden_size: int, keep: int) -> None:
        super().__init__(keep=keep)
        self.keep = keep
        self.query = nn.Parameter(torch.zeros(hidden_size))
        self.asked = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.zeros_(self.asked.weight)
        nn.init.normal_(self.query, std=hidden_size**-0.5)

    def scores(self, visual: Tensor, question: Tensor | None) -> Tensor:
        """`[b, n]`, how much each token is attended to, before the softmax."""
        query = self.query if question is None else self.query + self.asked(question)[:, None]
        return (self.key(visual) * query).sum(-1) * visual.shape[-1] ** -0.5

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        scores = self.scores(visual, question)
        ranked = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        keep = min(self.keep, visual.shape[1])
        # Sorted by place: padding, which is kept only where an image is short, stays last.
        kept = ranked.topk(keep).indices.sort().values
        real = None if mask is None else mask.gather(1, kept)
        if real is not None and bool(real.all()):
            real = None
        weight = 2 * scores.gather(1, kept).sigmoid()
        tokens = visual.gather(1, kept[..., None].expand(-1, -1, visual.shape[-1]))
        return Compressed(emphasised(tokens, weight, mean_of(visual, mask)), mask=real)
