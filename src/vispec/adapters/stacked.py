"""Adapters one behind the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vispec.adapters.base import Adapter, Compressed


class StackedAdapter(Adapter):
    """What one adapter makes of an image is the next one's image.

    The global vector is the first one that any of them makes.

    Args:
        parts: what is applied, in this order; what may leave nothing of an image comes last.
    """

    def __init__(self, parts: Sequence[Adapter], settings: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(parts=list(settings))
        self.parts = nn.ModuleList(parts)
        self.has_global = any(part.has_global for part in parts)
        self.asks = any(part.asks for part in parts)
        self.hides = parts[-1].hides
        if any(part.hides for part in parts[:-1]):
            raise ValueError("one that may leave nothing of an image stands before another")

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        globals_, loss = None, None
        for part in self.parts:
            found = part(visual, mask, question)
            visual, mask = found.tokens, found.mask
            globals_ = found.globals if globals_ is None else globals_
            if found.loss is not None:
                loss = found.loss if loss is None else loss + found.loss
        return Compressed(visual, globals_, mask, loss)
