"""A bottleneck for every visual token."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from vispec.adapters.base import Adapter, Compressed, mean_of


class MlpAdapter(Adapter):
    """Maps visual tokens one to one: down to an inner width, and back up.

    Args:
        hidden_size: `d`.
        inner: width between its layers.
        layers: matrices, at least two, with ReLU between them.
        reconstruct: weight of its own loss, the smooth L1 distance of what comes out from what went
            in, as of an autoencoder.
    """

    def __init__(
        self, hidden_size: int, inner: int, layers: int = 2, reconstruct: float = 0.0
    ) -> None:
        super().__init__(inner=inner, layers=layers, reconstruct=reconstruct)
        if layers < 2:
            raise ValueError(f"an MLP has at least 2 layers, not {layers}; 'linear' has one")
        widths = [hidden_size, *[inner] * (layers - 1), hidden_size]
        parts: list[nn.Module] = []
        for before, behind in itertools.pairwise(widths):
            parts += [nn.Linear(before, behind), nn.ReLU()]
        self.map = nn.Sequential(*parts[:-1])
        self.reconstruct = reconstruct

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        tokens = self.map(visual)
        if not (self.reconstruct and self.training):
            return Compressed(tokens, mask=mask)
        apart = mean_of(F.smooth_l1_loss(tokens, visual, reduction="none"), mask)
        return Compressed(tokens, mask=mask, loss=self.reconstruct * apart.mean(-1))
