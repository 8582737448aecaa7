"""Neighbouring visual tokens through a filter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispec.adapters.base import Adapter, Compressed


class ConvolutionAdapter(Adapter):
    """One token for every few neighbours: a filter of every channel, then a matrix for all.

    It starts as their mean; of a shorter last group, padded with nothing.

    Args:
        hidden_size: `d`.
        stride: neighbours that become one token.
    """

    def __init__(self, hidden_size: int, stride: int) -> None:
        super().__init__(stride=stride)
        self.stride = stride
        self.filter = nn.Conv1d(hidden_size, hidden_size, stride, stride, groups=hidden_size)
        self.mix = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.constant_(self.filter.weight, 1 / stride)
        nn.init.zeros_(self.filter.bias)  # type: ignore[arg-type]
        nn.init.eye_(self.mix.weight)

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        n = visual.shape[1]
        if mask is not None:
            visual = visual * mask[..., None]
        visual = F.pad(visual, (0, 0, 0, -n % self.stride))
        tokens = self.mix(self.filter(visual.transpose(1, 2)).transpose(1, 2))
        if mask is None:
            return Compressed(tokens)
        # An image's last token may have fewer neighbours; behind it there is none.
        count = (mask.sum(1, keepdim=True) + self.stride - 1) // self.stride
        real = torch.arange(tokens.shape[1], device=tokens.device) < count
        return Compressed(tokens, mask=real)
