"""An independent model as a draft: any language model, or one that sees, with the same vocabulary.

It reads the prompt itself (Leviathan et al., arXiv 2211.17192), so it needs none of the target's
features. One that takes no images is not shown any.

Shapes: `b` requests, `n` tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vispec.decoding.tree import SampledShape, Tree, TreeShape, ancestor_mask
from vispec.drafts.base import DraftNoise
from vispec.drafts.growth import Expand, grow
from vispec.errors import DraftMismatchError
from vispec.targets.base import Prefill, Prompt, Target


class LanguageModelDraft:
    """A model that drafts.

    Args:
        model: the drafting model, wrapped as if it were a target.
        sees: whether it is shown the pictures, in the target's own inputs: for models of one family
            whose processors are alike. By default it is where it has a vision tower.
        name: what messages call it; the model's own name by default.
    """

    def __init__(self, model: Target, *, sees: bool | None = None, name: str | None = None) -> None:
        self.model = model
        self.sees = model.config is not model.text_config if sees is None else sees
        self.name = name or model.name

    def feature_layers(self, target: Target) -> Sequence[int]:
        return ()

    def check(self, target: Target) -> None:
        problems = self.cannot_grow()
        if not same_vocabulary(self.model, target):
            problems.append(
                f"draft has another vocabulary ({self.model.vocab_size} entries) than the target"
                f" ({target.vocab_size}); UniversalDraft crosses over"
            )
        if self.sees and self.model.model_type != target.model_type:
            problems.append(
                f"draft is a {self.model.model_type}, target a {target.model_type}: what one is"
                " shown is not what the other takes; use sees=False"
            )
        if problems:
            raise DraftMismatchError(self.name, target.name, problems)

    def cannot_grow(self) -> list[str]:
        """Why the model cannot grow trees, if it cannot."""
        kinds = set(self.model.layer_kinds)
        if kinds == {"full_attention"}:
            return []
        said = ", ".join(sorted(kinds))
        return [f"draft has layers of {said}; it can grow trees with full_attention alone"]

    def compile_passes(self) -> None:
        self.model.compile_passes()

    def session(self, target: Target, slots: int, capacity: int) -> LanguageModelSession:
        return LanguageModelSession(self, target, slots, capacity)


def same_vocabulary(one: Target, other: Target) -> bool:
    """Whether two models mean the same by every token; by their sizes if that is all there is."""
    if one.tokenizer is None or other.tokenizer is None:
        return one.vocab_size == other.vocab_size
    same: bool = one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    return same


class LanguageModelSession:
    """The drafting model's cache, and what it has still to read of every request."""

    def __init__(
        self, draft: LanguageModelDraft, target: Target, slots: int, capacity: int
    ) -> None:
        self.draft, self.model = draft, draft.model
        self.vocabulary = target.vocab_size
        self.cache = self.model.new_cache(slots, capacity)
        # Tokens that were said and not yet read, the root last.
        self.unread: list[list[int]] = [[] for _ in range(slots)]

    def begin(self, slot: int, prompt: Prompt, prefill: Prefill, token: int) -> None:
        inputs: dict[str, Any] = prompt.inputs
        if not self.draft.sees:
            text = prefill.image_index < 0
            inputs = {"input_ids": self._known(prompt.inputs["input_ids"][:, text])}
        self.model.prefill(self.model.prompt(dict(inputs)), self.cache, slot)
        self.unread[slot] = [token]

    def propose(
        self, roots: Tensor, shape: TreeShape | SampledShape, noise: DraftNoise | None
    ) -> Tree:
        first = self._fitted(self.read(len(roots)))
        further = self.expander(len(roots), max(1, shape.expanded))

        def expand(token: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
            return self._fitted(further(token, origin, seen))

        return grow(roots, first, expand, shape, noise)

    def _fitted(self, logits: Tensor) -> Tensor:
        """With as many entries as the target's head has: families pad them differently."""
        missing = self.vocabulary - logits.shape[-1]
        if missing <= 0:
            return logits[..., : self.vocabulary]
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)

    def _known(self, token: Tensor) -> Tensor:
        """Entries that only the target's head has stand for no word."""
        return token.clamp(max=self.model.vocab_size - 1)

    def read(self, b: int) -> Tensor:
        """Read what was said, which is kept: `[b, V]` behind the last of it."""
        # Requests are read side by side, as far as the longest: where one that is nearly full has
        # no room for that, all but the last tokens of the others go first.
        while max(map(len, self.unread[:b])) > (room := self._room(b)):
            heads = [row[:-1][:room] for row in self.unread[:b]]
            tails = [row[len(head) :] for row, head in zip(self.unread[:b], heads, strict=True)]
            self._read(heads)
            self.unread[:b] = tails
        logits = self._read(self.unread[:b])
        self.unread[:b] = [[] for _ in range(b)]
        return logits

    def _room(self, b: int) -> int:
        """For how many further positions every slot has room."""
        return self.cache.capacity - max(self.cache.length[:b])

    def _read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Read some tokens of every request: `[b, V]` behind the last of each."""
        b, device = len(rows), self.model.device
        n = max(map(len, rows))
        padded = [[*row, *[0] * (n - len(row))] for row in rows]
        depth = torch.arange(n, device=device).expand(b, -1)
        self.cache.window(0, b, n)
        chain = ancestor_mask(depth - 1, n - 1)
        token = self._known(torch.tensor(padded, device=device))
        logits = self.model.extend(token, depth, chain, self.cache)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        for slot, row in enumerate(rows):
            if row:
                self.cache.keep(slot, range(len(row)))
        return logits[torch.arange(b, device=device), last]

    def expander(self, b: int, width: int) -> Expand:
        """What continues trees of up to `width` tokens level by level; none of them is kept."""
        self.cache.window(0, b, width)
        level = 0

        def expand(token: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
            nonlocal level
            w, m = seen.shape[1:]
            self.cache.step(w, m - w)
            found = self.model.extend(token, torch.full_like(token, level), seen, self.cache)
            level += 1
            return found

        return expand

    def advance(
        self, nodes: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], features: Tensor
    ) -> None:
        for slot, said in enumerate(tokens):
            self.unread[slot] += said

    def move(self, source: int, target: int) -> None:
        self.cache.move(source, target)
        self.unread[target] = self.unread[source]
