"""One adapter for several targets: projections of each around a core that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vispec.adapters.base import Adapter, Compressed


class UnifiedAdapter(Adapter):
    """A target's images in a width that targets share, through the core, and back.

    Args:
        hidden_size: `d`, of this target.
        parts: the core alone, of the shared width.
        settings: what it was built with.
        width: that the targets share.
    """

    def __init__(
        self, hidden_size: int, parts: list[Adapter], settings: list[Mapping[str, Any]], width: int
    ) -> None:
        super().__init__(parts=list(settings), width=width)
        if len(parts) != 1:
            raise ValueError(f"a unified adapter has one core, not {len(parts)}")
        self.core = parts[0]
        self.enter = nn.Linear(hidden_size, width, bias=False)
        self.leave = nn.Linear(width, hidden_size, bias=False)
        self.has_global, self.asks = self.core.has_global, self.core.asks
        self.hides = self.core.hides

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        asked = None if question is None else self.enter(question)
        found = self.core(self.enter(visual), mask, asked)
        globals_ = None if found.globals is None else self.leave(found.globals)
        return Compressed(self.leave(found.tokens), globals_, found.mask, found.loss)
