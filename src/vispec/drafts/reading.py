"""How a sequential draft lays out what the target saw: its rows, images compressed.

Row `p` pairs the target's feature at position `p` with the embedding of the token at `p + 1`. Texts
of different lengths, with different numbers of images of different sizes, are laid out together:
every part of the draft runs once for all of them.

Shapes: `t` positions of one text, `T` of all; `k` images of all; `r` tokens an image; `n` rows;
`d` hidden size, `f` features of the target, `x` width of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vispec.adapters.base import Adapter, Compressed

if TYPE_CHECKING:
    from vispec.drafts.sequential import SequentialDraft


@dataclass(frozen=True)
class Seen:
    """A text that the target has read, and the token behind it, which it has not.

    Attributes:
        embeddings: `[t + 1, d]` the decoder's inputs, images in them.
        features: `[t, f]` of the target.
        image_index: `[t + 1]`, the image a position belongs to, -1 for text.
        prompt: how many of its positions are the prompt; what is behind them was answered.
    """

    embeddings: Tensor
    features: Tensor
    image_index: Tensor
    prompt: int


@dataclass(frozen=True)
class Rows:
    """A text as the draft reads it.

    Attributes:
        hidden: `[n, x]` inputs of the decoder.
        position: `[n]` draft positions, ascending, with gaps where images were.
        globals: `[d]`, the vector that serves the text behind it.
    """

    hidden: Tensor
    position: Tensor
    globals: Tensor


@dataclass(frozen=True)
class Reading:
    """Texts as the draft reads them.

    Attributes:
        loss: of each text, what the adapter wants to be small, as a mean over its images; None
            where it wants nothing.
    """

    rows: list[Rows]
    loss: Tensor | None = None


@dataclass(frozen=True)
class _Images:
    """Images of all texts, in the order of their ends.

    Attributes:
        visual, mask: `[k, n, d]` and `[k, n]`, padded behind; embeddings, or rows of the draft.
        owner: `[k]`, which text each is of.
        end: `[k]`, the row behind its last one, counted through all texts.
        start: `[k]`, the first row of its text, counted likewise.
    """

    visual: Tensor
    mask: Tensor | None
    owner: Tensor
    end: Tensor
    start: Tensor


def own_words(words: Tensor, embeddings: Tensor, image_index: Tensor) -> Tensor:
    """What a draft with a token embedding of its own reads in place of the decoder's inputs.

    Of another width than the target's, it knows images by their placeholders alone.

    Args:
        words: `[t, w]` its own embeddings of the tokens.
        embeddings: `[t, d]` the decoder's inputs.
        image_index: `[t]`, -1 for text.
    """
    shown = (image_index >= 0) & (words.shape[-1] == embeddings.shape[-1])
    return torch.where(shown[:, None], embeddings, words) if shown.any() else words


def read(draft: SequentialDraft, seen: Sequence[Seen]) -> Reading:
    """Lay out texts, each as if it were alone."""
    # Together before they are converted, where they are kept in other numbers: texts are many.
    words = torch.cat([one.embeddings[1:] for one in seen]).to(draft.dtype)
    features = torch.cat([one.features for one in seen]).to(draft.dtype)
    image = torch.cat([one.image_index[1:] for one in seen])
    device = words.device
    lengths = [len(one.features) for one in seen]
    # Worked out on the CPU: a device is not asked how many there are.
    owner, place = (index.to(device) for index in placed(torch.tensor(lengths)))
    row = torch.arange(len(words), device=device)
    nothing = words.new_zeros(1, words.shape[1])
    adapter = draft.adapter

    def given(at: Tensor) -> Tensor:
        """What the adapter is given of some positions."""
        if adapter is None or not adapter.rows:
            return words[at]
        return draft.combine(words[at], draft.fuse(features[at]), nothing.expand_as(words[at]))

    images = None if adapter is None else _images(given, image, owner, row - place)
    if adapter is None or images is None:
        hidden = draft.combine(words, draft.fuse(features), nothing.expand_as(words))
        parts = zip(hidden.split(lengths), place.split(lengths), strict=True)
        return Reading([Rows(x, places, nothing[0]) for x, places in parts])
    compressed = _compress(adapter, seen, images)
    text = row if adapter.keeps else (image < 0).nonzero()[:, 0]
    # The image that a row follows: the last one of its own text that has ended before it.
    last = torch.searchsorted(images.end, text, right=True) - 1
    follows = (last >= 0) & (images.owner[last.clamp(min=0)] == owner[text])
    vectors = nothing if compressed.globals is None else compressed.globals
    serving = torch.where(follows[:, None], vectors[last.clamp(0, len(vectors) - 1)], nothing)
    said = draft.combine(words[text], draft.fuse(features[text]), serving)
    # Compressed tokens stand where their image's last ones stood.
    counts = compressed.counts()
    of, rank = placed(counts)
    ends = images.end[of]
    at = ends - counts[of] + rank
    real = slice(None) if compressed.mask is None else compressed.mask
    shown = draft.enter(compressed.tokens[real].reshape(-1, words.shape[1]))
    # Behind all text within the image's own span, before what follows it.
    order = torch.cat([2 * text, 2 * ends - 1]).argsort(stable=True)
    hidden = torch.cat([said, shown.to(said.dtype)])[order]
    spots = torch.cat([place[text], (at - images.start[of]).clamp(min=0)])[order]
    sizes = torch.cat([owner[text], images.owner[of]]).bincount(minlength=len(seen)).tolist()
    found = torch.where(owner.new_tensor(range(len(seen)))[:, None] == images.owner, 1, 0)
    serves = (found * torch.arange(1, len(images.owner) + 1, device=device)).amax(1) - 1
    final = torch.where(serves[:, None] >= 0, vectors[serves.clamp(0, len(vectors) - 1)], nothing)
    each = zip(hidden.split(sizes), spots.split(sizes), final, strict=True)
    loss = compressed.loss
    if loss is not None:
        of_text = images.owner.bincount(minlength=len(seen)).clamp(min=1)
        loss = loss.new_zeros(len(seen)).index_add(0, images.owner, loss) / of_text
    return Reading([Rows(*one) for one in each], loss)


def placed(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of things in rows of so many each, one row behind another: the row and the place in it."""
    row = torch.repeat_interleave(counts)
    return row, torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]


def _images(
    given: Callable[[Tensor], Tensor], image: Tensor, owner: Tensor, start: Tensor
) -> _Images | None:
    """All images there are, gathered; None where there is none.

    Args:
        given: of positions, what is gathered.
        image, owner, start: of every position its image, its text, and where that starts.
    """
    at = (image >= 0).nonzero()[:, 0]
    if not len(at):
        return None
    number = owner[at] * (int(image.max()) + 1) + image[at]
    known, which, sizes = number.unique(return_inverse=True, return_counts=True)
    end = torch.zeros_like(known).scatter_reduce(0, which, at + 1, "amax")
    # By their ends, which is how rows find the one they follow.
    end, order = end.sort()
    which, sizes = order.argsort()[which], sizes[order]
    at = at[which.argsort(stable=True)]
    shown, longest = given(at), int(sizes.max())
    visual = shown.new_zeros(len(known), longest, shown.shape[1])
    visual = visual.index_put(placed(sizes), shown)
    mask = None
    if int(sizes.min()) < longest:
        mask = torch.arange(longest, device=at.device) < sizes[:, None]
    return _Images(visual, mask, owner[end - 1], end, start[end - 1])


def _compress(adapter: Adapter, seen: Sequence[Seen], images: _Images) -> Compressed:
    if not adapter.asks:
        plain: Compressed = adapter(images.visual, images.mask)
        return plain
    asked = []
    for one in seen:
        text = one.image_index[: one.prompt] < 0
        asked.append(one.embeddings[: one.prompt][text].mean(0).nan_to_num())
    compressed: Compressed = adapter(
        images.visual, images.mask, torch.stack(asked).to(images.visual.dtype)[images.owner]
    )
    return compressed
