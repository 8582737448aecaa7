"""Neighbouring visual tokens as their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from vispec.adapters.base import Adapter, Compressed


class PoolingAdapter(Adapter):
    """As many tokens for an image of any size: means of equally long runs of its own.

    It has no weights. Images of fewer tokens stay as they are.

    Args:
        hidden_size: `d`.
        keep: tokens an image, at most.
    """

    def __init__(self, hidden_size: int, keep: int) -> None:
        super().__init__(keep=keep)
        self.keep = keep

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        b, n, d = visual.shape
        keep = min(self.keep, n)
        count = visual.new_full((b, 1), n).long() if mask is None else mask.sum(1, keepdim=True)
        kept, place = count.clamp(max=keep), torch.arange(n, device=visual.device)
        # Padding lies behind all runs, in one that is dropped.
        run = torch.where(place < count, place * kept // count, keep)
        sums = visual.new_zeros(b, keep + 1, d)
        sums = sums.scatter_add(1, run[..., None].expand_as(visual), visual)[:, :-1]
        runs = torch.arange(keep, device=visual.device)
        sizes = (run[..., None] == runs).sum(1)
        real = runs < kept
        tokens = sums / sizes.clamp(min=1)[..., None]
        return Compressed(tokens, mask=None if bool(real.all()) else real)
