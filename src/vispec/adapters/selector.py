"""One of several trained adapters, chosen by the kind of image and question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispec.adapters.base import Adapter, Compressed, mean_of
from vispec.adapters.elastic import chosen


class SelectorAdapter(Adapter):
    """Knows some kinds of inputs by their means, and which part serves each best.

    Nothing of it is learnt by gradients: `fit` takes the means of examples, and what was measured.
    The nearest kind is that of the smallest angle.

    Args:
        hidden_size: `d`.
        parts: what it chooses from.
        settings: what they were built with.
        kinds: what the kinds of inputs are called: tasks, or sorts of images.
    """

    asks = True

    def __init__(
        self,
        hidden_size: int,
        parts: Sequence[Adapter],
        settings: Sequence[Mapping[str, Any]],
        kinds: Sequence[str],
    ) -> None:
        super().__init__(parts=list(settings), kinds=list(kinds))
        self.parts, self.kinds = nn.ModuleList(parts), list(kinds)
        self.has_global = any(part.has_global for part in parts)
        self.hides = any(part.hides for part in parts)
        self.means: Tensor
        self.best: Tensor
        self.register_buffer("means", torch.zeros(len(kinds), 2 * hidden_size))
        self.register_buffer("best", torch.zeros(len(kinds), dtype=torch.long))

    def fit(self, keys: Tensor, kind: Tensor, acceptance: Tensor) -> None:
        """Learn the kinds from examples, and each one's best part from what was measured.

        Args:
            keys: `[n, 2 d]` of examples; see `key`.
            kind: `[n]`, the number of each one's kind.
            acceptance: `[kinds, parts]`, measured acceptance lengths.
        """
        for number in range(len(self.kinds)):
            self.means[number] = F.normalize(keys[kind == number].to(self.means), dim=-1).mean(0)
        self.best.copy_(acceptance.argmax(1))

    @staticmethod
    def key(visual: Tensor, mask: Tensor | None, question: Tensor | None) -> Tensor:
        """`[b, 2 d]`: an image's mean, and what is asked, each of length one."""
        mean = mean_of(visual, mask)
        asked = torch.zeros_like(mean) if question is None else question
        return torch.cat([F.normalize(mean, dim=-1), F.normalize(asked, dim=-1)], -1)

    def kind_of(self, visual: Tensor, mask: Tensor | None, question: Tensor | None) -> Tensor:
        """`[b]`, the number of the nearest kind."""
        key = self.key(visual, mask, question)
        near = F.normalize(key, dim=-1) @ F.normalize(self.means.to(key), dim=-1).T
        return near.argmax(-1)

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        part = self.best[self.kind_of(visual, mask, question)]
        weight = F.one_hot(part, len(self.parts)).to(visual.dtype)
        return chosen(self.parts, weight, visual, mask, question, self.has_global)
