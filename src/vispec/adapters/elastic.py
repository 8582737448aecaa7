"""SpecVLM's elastic compressor (arXiv 2509.11815): for every image, the adapter that suits it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispec.adapters.base import Adapter, Compressed, emphasised, mean_of


class ElasticAdapter(Adapter):
    """A gate that looks at the image and at what is asked chooses one of several adapters.

    In training the choice is drawn (Gumbel-softmax, arXiv 1611.01144); afterwards it is the
    likeliest. Only what is chosen runs, in training too, and that is all the gate learns from: a
    part becomes likelier where its tokens, further from the image's mean, would lower the loss, and
    a part without tokens only through the others. Whether another part would have served better is
    what a `SelectorAdapter` is fitted to.

    Args:
        hidden_size: `d`.
        parts: what it chooses from.
        settings: what they were built with.
        temperature: of the draws; the lower, the closer their gradient is to that of a choice.
    """

    asks = True

    def __init__(
        self,
        hidden_size: int,
        parts: Sequence[Adapter],
        settings: Sequence[Mapping[str, Any]],
        temperature: float = 1.0,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}, and draws need one above 0")
        super().__init__(parts=list(settings), temperature=temperature)
        self.parts = nn.ModuleList(parts)
        self.gate = nn.Linear(2 * hidden_size, len(parts))
        self.temperature = temperature
        self.has_global = any(part.has_global for part in parts)
        self.hides = any(part.hides for part in parts)

    def choice(self, visual: Tensor, mask: Tensor | None, question: Tensor | None) -> Tensor:
        """`[b, parts]` logits of the gate."""
        mean = mean_of(visual, mask)
        asked = torch.zeros_like(mean) if question is None else question
        return self.gate(torch.cat([mean, asked], -1))

    def forward(
        self, visual: Tensor, mask: Tensor | None = None, question: Tensor | None = None
    ) -> Compressed:
        logits = self.choice(visual, mask, question)
        if self.training:
            weight = F.gumbel_softmax(logits, self.temperature, hard=True)
        else:
            weight = F.one_hot(logits.argmax(-1), len(self.parts)).to(visual.dtype)
        return chosen(self.parts, weight, visual, mask, question, self.has_global)


def chosen(
    parts: Iterable[nn.Module],
    weight: Tensor,
    visual: Tensor,
    mask: Tensor | None,
    question: Tensor | None,
    has_global: bool,
) -> Compressed:
    """What the part with weight one makes of each image; weights `[b, parts]` learn from it."""
    b, _, d = visual.shape
    of, mean = weight.argmax(-1), mean_of(visual, mask)
    found: list[tuple[Tensor, Compressed]] = []
    for index, part in enumerate(parts):
        rows = (of == index).nonzero()[:, 0]
        if len(rows):
            asked = None if question is None else question[rows]
            seen = None if mask is None else mask[rows]
            found.append((rows, part(visual[rows], seen, asked)))
    r = max(compressed.tokens.shape[1] for _, compressed in found)
    tokens, real = visual.new_zeros(b, r, d), torch.zeros(b, r, dtype=torch.bool)
    real = real.to(visual.device)
    globals_ = visual.new_zeros(b, d) if has_global else None
    loss = None
    for rows, compressed in found:
        own = compressed.tokens.shape[1]
        scale = weight[rows, of[rows]]
        weighted = emphasised(compressed.tokens, scale[:, None], mean[rows])
        padded = F.pad(weighted, (0, 0, 0, r - own))
        tokens = tokens.index_copy(0, rows, padded.to(tokens.dtype))
        real[rows, :own] = True if compressed.mask is None else compressed.mask
        if compressed.globals is not None and globals_ is not None:
            scaled = (compressed.globals * scale[:, None]).to(globals_.dtype)
            globals_ = globals_.index_copy(0, rows, scaled)
        if compressed.loss is not None:
            own_loss = compressed.loss.to(visual.dtype)
            loss = (visual.new_zeros(b) if loss is None else loss).index_copy(0, rows, own_loss)
    return Compressed(tokens, globals_, None if bool(real.all()) else real, loss)
