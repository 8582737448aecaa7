"""A language model with another vocabulary as a draft (arXiv 2502.05202, string-level exact match).

The draft goes on in its own tokens; their text, in the target's tokens, is what is proposed. What
the target says is text for the draft in turn. No probability crosses over, so what is accepted
follows the keyed rule, whatever was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts.base import DraftNoise
from vispec.drafts.language_model import LanguageModelDraft, LanguageModelSession
from vispec.drafts.lookup import planted
from vispec.errors import DraftMismatchError
from vispec.targets.base import Prefill, Prompt, Target

TAIL = 8
"""Tokens before the proposed ones that are tokenized again with them."""


class UniversalDraft(LanguageModelDraft):
    """A text model that drafts for any target.

    Args:
        model: the drafting model, with its tokenizer.
        name: what messages call it; the model's own name by default.
    """

    def __init__(self, model: Target, *, name: str | None = None) -> None:
        super().__init__(model, sees=False, name=name)

    def check(self, target: Target) -> None:
        problems = self.cannot_grow()
        problems += [
            f"{whose} has no tokenizer to turn tokens into text with"
            for whose, model in (("draft", self.model), ("target", target))
            if model.tokenizer is None
        ]
        if problems:
            raise DraftMismatchError(self.name, target.name, problems)

    def session(self, target: Target, slots: int, capacity: int) -> UniversalSession:
        return UniversalSession(self, target, slots, capacity)


class UniversalSession(LanguageModelSession):
    """The texts of a running batch in both vocabularies."""

    def __init__(self, draft: UniversalDraft, target: Target, slots: int, capacity: int) -> None:
        # The same text may take more of the draft's tokens, rarely more than these.
        super().__init__(draft, target, slots, 4 * capacity)
        self.theirs, self.ours = target.tokenizer, draft.model.tokenizer
        self.said: list[list[int]] = [[] for _ in range(slots)]
        """In the target's tokens, images left out."""
        self.read_ids: list[list[int]] = [[] for _ in range(slots)]
        """In the draft's, as its cache holds them."""

    def begin(self, slot: int, prompt: Prompt, prefill: Prefill, token: int) -> None:
        text = (prefill.image_index < 0).tolist()
        self.said[slot] = [*(i for i, is_text in zip(prompt.ids, text, strict=True) if is_text)]
        self.said[slot].append(token)
        self.read_ids[slot], self.unread[slot] = [], []
        self.cache.length[slot] = 0

    def propose(
        self, roots: Tensor, shape: TreeShape | SampledShape, noise: DraftNoise | None
    ) -> Tree:
        b, device = len(roots), self.model.device
        texts = [_decoded(self.theirs, self.said[slot]) for slot in range(b)]
        for slot, text in enumerate(texts):
            self._take(slot, text)
        unread = max(map(len, self.unread[:b]))
        self.cache.widen(max(self.cache.length[:b]) + unread + shape.depth)
        logits = self.read(b)
        expand, depth = self.expander(b, shape.depth), shape.depth
        chain = torch.ones(depth, depth, dtype=torch.bool, device=device).tril().expand(b, -1, -1)
        guessed = [logits.argmax(-1)]
        for step in range(1, depth):
            seen = chain[:, step - 1 : step, :step]
            guessed.append(expand(guessed[-1][:, None], roots, seen)[:, 0].argmax(-1))
        rows = []
        for slot, ids in enumerate(torch.stack(guessed, 1).tolist()):
            whole = _decoded(self.ours, self.read_ids[slot] + ids)
            own = _decoded(self.ours, self.read_ids[slot])
            new = whole[len(own) :] if whole.startswith(own) else ""
            following = self._theirs(slot, new.rstrip("\N{REPLACEMENT CHARACTER}"))
            room = min(depth, shape.size - 1)
            rows.append([(token, place) for place, token in enumerate(following[:room])])
        return planted(roots, rows, shape)

    def _take(self, slot: int, text: str) -> None:
        """Let the draft's cache hold no more than what the text begins with in its own tokens."""
        ids = list(self.ours.encode(text)) or [self.ours.eos_token_id or 0]
        known, same = self.read_ids[slot], 0
        # The last token is always read: what follows it is asked for.
        while same < min(len(known), len(ids) - 1) and known[same] == ids[same]:
            same += 1
        self.cache.length[slot] = same
        self.unread[slot], self.read_ids[slot] = ids[same:], ids

    def _theirs(self, slot: int, new: str) -> list[int]:
        """The target's tokens for a text behind what it said; none where they would merge."""
        before = self.said[slot][-TAIL:]
        whole = self.theirs.encode(_decoded(self.theirs, before) + new, add_special_tokens=False)
        return list(whole[len(before) :]) if whole[: len(before)] == before else []

    def advance(
        self, nodes: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], features: Tensor
    ) -> None:
        for slot, said in enumerate(tokens):
            self.said[slot] += said

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        self.said[target], self.read_ids[target] = self.said[source], self.read_ids[source]


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
