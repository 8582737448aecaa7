"""Visual tokens that look at each other."""

from __future__ import annotations

from torch import Tensor, nn

from vispec.adapters.base import Adapter, Compressed


class TransformerAdapter(Adapter):
    """Maps visual tokens one to one, each knowing all others of its image.

    Args:
        hidden_size: `d`.
        heads: attention heads.
        inner: width of its MLPs.
        layers: encoder layers, their norms first.
    """

    def __init__(self, hidden_size: int, heads: int, inner: int, layers: int = 1) -> None:
        super().__init__(heads=heads, inner=inner, layers=layers)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden_size,
                heads,
                inner,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        padding = None if mask is None else ~mask
        for layer in self.layers:
            visual = layer(visual, src_key_padding_mask=padding)
        return Compressed(visual, mask=mask)
