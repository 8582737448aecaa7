"""A sequential draft at work on a running batch.

Shapes: `b` requests, `n` rows, `d` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vispec.decoding.cache import SlotCache
from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts.base import DraftNoise
from vispec.drafts.growth import grow
from vispec.drafts.reading import Seen, own_words
from vispec.targets.base import Prefill, Prompt, Target

if TYPE_CHECKING:
    from vispec.drafts.sequential import SequentialDraft


class SequentialSession:
    """The draft's cache and last guesses for a running batch."""

    def __init__(self, draft: SequentialDraft, target: Target, slots: int, capacity: int) -> None:
        self.draft, self.head = draft, target.head
        self.vocabulary = draft.vocabulary
        self.embedding = draft.embed_tokens or target.embedding
        device, dtype = target.device, draft.dtype
        self.capacity = capacity
        self.cache = SlotCache(
            shapes=draft.cache_shapes(),
            slots=slots,
            capacity=capacity,
            dtype=dtype,
            device=device,
            compiled=draft.compiled,
        )
        self.longest = 1
        self.hidden = torch.zeros(slots, draft.width, dtype=dtype, device=device)
        self.globals = torch.zeros_like(self.hidden)
        self.position = [0] * slots

    def begin(self, slot: int, prompt: Prompt, prefill: Prefill, token: int) -> None:
        device, embeddings = self.hidden.device, prefill.embeddings
        if self.draft.embed_tokens is not None:
            words = self.embedding(torch.tensor(prompt.ids, device=device))
            embeddings = own_words(words, embeddings, prefill.image_index)
        following = self.embedding(torch.tensor([token], device=device))
        index = torch.cat([prefill.image_index, prefill.image_index.new_full((1,), -1)])
        embeddings = torch.cat([embeddings, following.to(embeddings.dtype)])
        seen = Seen(embeddings, prefill.features, index, len(prompt))
        (rows,) = self.draft.read([seen]).rows
        n, place, behind = len(rows.position), rows.position, len(prompt)
        if self.draft.follows_positions and prefill.positions is not None:
            place = prefill.positions[..., place]
            behind = int(prefill.positions[..., -1].max()) + 1
        # A small image can become more tokens than it had.
        self.cache.widen(self.capacity + n - len(prompt))
        self.cache.length[slot] = 0
        self.cache.window(slot, 1, n, exact=True)
        hidden = self.draft(rows.hidden[None], place[..., None, :], cache=self.cache)
        self.cache.length[slot] = n
        self.hidden[slot] = hidden[0, -1]
        self.globals[slot] = rows.globals
        self.position[slot] = behind

    def propose(
        self, roots: Tensor, shape: TreeShape | SampledShape, noise: DraftNoise | None
    ) -> Tree:
        b, width = len(roots), max(1, shape.expanded)
        self.cache.window(0, b, width)
        self.longest = shape.depth + 1
        position = torch.tensor(self.position[:b], device=roots.device)
        hidden, globals_ = self.hidden[:b], self.globals[:b]
        models = self.embedding, self.head, self.cache
        if isinstance(shape, TreeShape):
            return self.draft.grow(roots, hidden, globals_, position, shape, *models)
        expand = self.draft.expander(hidden, globals_, position, *models)
        first = self.draft.logits(hidden, self.head)
        return grow(roots, first, expand, shape, noise, self.draft.token_map, self.vocabulary)

    def advance(
        self, nodes: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], features: Tensor
    ) -> None:
        b, counts = len(nodes), [len(row) for row in nodes]
        # Compiled, one length serves all; what is behind a request's own is never kept.
        n = max(self.longest, *counts) if self.draft.compiled else max(counts)
        device = features.device
        padded = [[[*row, *[0] * (n - len(row))] for row in rows] for rows in (nodes, tokens)]
        node, token = torch.tensor(padded, device=device)
        feature = features.gather(1, node[..., None].expand(-1, -1, features.shape[-1]))
        count, position = torch.tensor([counts, self.position[:b]], device=device)
        self.cache.window(0, b, n)
        self.hidden[:b] = self.draft.follow(
            token, feature, count, self.globals[:b], position, self.embedding, self.cache
        )
        for slot, length in enumerate(counts):
            self.cache.length[slot] += length
            self.position[slot] += length

    def move(self, source: int, target: int) -> None:
        self.cache.move(source, target)
        self.hidden[target] = self.hidden[source]
        self.globals[target] = self.globals[source]
        self.position[target] = self.position[source]
