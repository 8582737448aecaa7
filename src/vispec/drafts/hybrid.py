"""A draft that looks words up where the text repeats itself, and else asks another draft.

Read text, such as what a picture says, is copied in long stretches that no small draft foresees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts.base import Draft, DraftNoise, DraftSession
from vispec.drafts.lookup import LookupDraft, LookupSession, planted
from vispec.targets.base import Prefill, Prompt, Target


class HybridDraft:
    """One draft, and a lookup that goes first.

    Args:
        draft: asked where nothing is found.
        lookup: should ask for several tokens that agree.
    """

    def __init__(self, draft: Draft, lookup: LookupDraft | None = None) -> None:
        self.draft, self.lookup = draft, lookup or LookupDraft(4, 2)

    @property
    def name(self) -> str:
        return f"{self.draft.name} with {self.lookup.name}"

    def feature_layers(self, target: Target) -> Sequence[int]:
        return self.draft.feature_layers(target)

    def check(self, target: Target) -> None:
        self.draft.check(target)

    def compile_passes(self) -> None:
        self.draft.compile_passes()

    def session(self, target: Target, slots: int, capacity: int) -> HybridSession:
        return HybridSession(
            self.draft.session(target, slots, capacity),
            self.lookup.session(target, slots, capacity),
        )


class HybridSession:
    """Both at work on a batch."""

    def __init__(self, draft: DraftSession, lookup: LookupSession) -> None:
        self.draft, self.lookup = draft, lookup

    def begin(self, slot: int, prompt: Prompt, prefill: Prefill, token: int) -> None:
        self.draft.begin(slot, prompt, prefill, token)
        self.lookup.begin(slot, prompt, prefill, token)

    def propose(
        self, roots: Tensor, shape: TreeShape | SampledShape, noise: DraftNoise | None
    ) -> Tree:
        """What was found for each request; the other draft runs where there is one without."""
        found = [self.lookup.branches(slot, shape) for slot in range(len(roots))]
        if all(found):
            return planted(roots, found, shape)
        tree = self.draft.propose(roots, shape, noise)
        if not any(found) or tree.shape is not None:
            return tree
        looked = planted(roots, found, shape)
        takes = torch.tensor([bool(nodes) for nodes in found], device=roots.device)[:, None]
        rest = looked.size - tree.size

        def mixed(own: Tensor, other: Tensor, nothing: float) -> Tensor:
            padded = torch.nn.functional.pad(other, (0, rest), value=nothing)
            return torch.where(takes, own, padded)

        return Tree(
            mixed(looked.token, tree.token, -1),
            mixed(looked.parent, tree.parent, 0),
            mixed(looked.depth, tree.depth, 1),
            max(looked.max_depth, tree.max_depth),
            mixed(looked.logprob, tree.logprob, 0),
        )

    def advance(
        self, nodes: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], features: Tensor
    ) -> None:
        self.draft.advance(nodes, tokens, features)
        self.lookup.advance(nodes, tokens, features)

    def move(self, source: int, target: int) -> None:
        self.draft.move(source, target)
        self.lookup.move(source, target)
