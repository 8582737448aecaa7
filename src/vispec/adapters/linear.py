"""One matrix for every visual token."""

from __future__ import annotations

from torch import Tensor, nn

from vispec.adapters.base import Adapter, Compressed


class LinearAdapter(Adapter):
    """Maps visual tokens one to one; it starts as the identity.

    Args:
        hidden_size: `d`.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.map = nn.Linear(hidden_size, hidden_size)
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        return Compressed(self.map(visual), mask=mask)
