"""Images that the draft does not see (HiViS, arXiv 2509.23928)."""

from __future__ import annotations

from torch import Tensor

from vispec.adapters.base import Adapter, Compressed


class HiddenAdapter(Adapter):
    """No visual token reaches the draft: the target's features behind the image carry it alone.

    Args:
        hidden_size: `d`.
    """

    hides = True

    def __init__(self, hidden_size: int) -> None:
        super().__init__()

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        return Compressed(visual[:, :0])
