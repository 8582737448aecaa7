"""Drafts that continue one token at a time from the target's features.

A row of the draft's sequence pairs the target's feature at one position with the embedding of the
token that followed it; the draft turns rows into guesses of the next features, and reads tokens
from those. With an adapter, an image's rows are replaced by a few compressed ones that enter the
decoder directly, and the image's global vector joins the feature of every later row.

Draft positions are one-dimensional and count target slots, whatever the target's rotary embedding
sees; a compressed image leaves a gap in them, never a shift. Drafts that were trained with the
target's own M-RoPE positions (`follows_positions`) are told those instead.

Shapes: `b` requests, `n` rows, `d` hidden size, `f` features of the target, `x` width of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vispec.adapters.base import Adapter
from vispec.decoding.cache import SlotCache
from vispec.decoding.compilation import compiled
from vispec.decoding.tree import Tree, TreeShape
from vispec.drafts.base import numbers_of, placing_misfits, size_misfits
from vispec.drafts.growth import Expand, grow_dynamic
from vispec.drafts.reading import Reading, Seen, read
from vispec.drafts.sequential_session import SequentialSession
from vispec.errors import DraftMismatchError
from vispec.targets.base import Target


class SequentialDraft(nn.Module):
    """What EAGLE, EAGLE-3 and their vision-aware forms share.

    Args:
        width: `d`.
        vocabulary: entries of the target's vocabulary.
        adapter: compresses images; None reads every image token like text.
        embedding: the draft's own token embedding, where a checkpoint brings one that differs
            from the target's; None shares the target's.
        name: what messages call it.
        token_map: see there.
        bias: a bias where the global vector joins.
    """

    token_map: Tensor | None
    """`[V']` target tokens that the draft's own, fewer tokens stand for; None where they agree."""
    trained_for: str | None = None
    """The target that its checkpoint names, where it names one."""

    def __init__(
        self,
        width: int,
        vocabulary: int,
        adapter: Adapter | None,
        embedding: nn.Embedding | None,
        name: str,
        token_map: Tensor | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("token_map", token_map, persistent=False)
        self.width, self.vocabulary = width, vocabulary
        self._name, self.compiled = name, False
        self.adapter: Adapter | None = None
        self.img_fc: nn.Linear | None = None
        if adapter is not None:
            self.take(adapter, bias)
        self.embed_tokens = embedding

    def take(self, adapter: Adapter, bias: bool = False) -> None:
        """Have an adapter make what is read of images.

        ViSpec starts as EAGLE: the feature passes unchanged, the global vector is ignored.

        Args:
            bias: where the global vector joins.
        """
        self.adapter = adapter
        if adapter.has_global:
            width = self.width
            self.img_fc = nn.Linear(2 * width, width, bias=bias)
            nn.init.zeros_(self.img_fc.weight)
            nn.init.eye_(self.img_fc.weight[:, :width])
            if bias:
                nn.init.zeros_(self.img_fc.bias)

    @property
    def name(self) -> str:
        return self._name

    @property
    def follows_positions(self) -> bool:
        """Whether its rows are placed as the target's rotary embedding places its tokens."""
        return False

    # --- What a kind of draft decides -----------------------------------------------------------

    def feature_layers(self, target: Target) -> Sequence[int]:
        """Whose hidden states it reads; see `Target.prefill`."""
        return ()

    @property
    def dtype(self) -> torch.dtype:
        return numbers_of(self).dtype

    def cache_shapes(self) -> list[tuple[int, int]]:
        """`(kv_heads, head_dim)` of every layer."""
        raise NotImplementedError

    def fuse(self, features: Tensor) -> Tensor:
        """The target's features `[…, f]` as one of the draft's own `[…, d]`."""
        return features

    def join(self, feature: Tensor, globals_: Tensor) -> Tensor:
        """A feature with its image's global vector, all `[…, d]`; itself where there is none."""
        if self.img_fc is None:
            return feature
        return self.img_fc(torch.cat([feature, globals_.expand_as(feature)], -1))

    def combine(self, embedding: Tensor, feature: Tensor, globals_: Tensor) -> Tensor:
        """A row `[…, x]` of a token's embedding and the feature before it, all `[…, d]`."""
        raise NotImplementedError

    def enter(self, tokens: Tensor) -> Tensor:
        """Compressed visual tokens `[…, d]` as rows `[…, x]`."""
        return tokens

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        mask: Tensor | None = None,
        cache: SlotCache | None = None,
    ) -> Tensor:
        """Run the decoder.

        Args:
            x: `[b, n, x]` combined rows.
            position: `[b, n]` draft positions.
            mask: additive `[b, 1, n, keys]`; None is causal.
            cache: where keys are written, its window already set; None attends to `x` alone.

        Returns:
            `[b, n, d]` guessed features.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor, head: nn.Module) -> Tensor:
        """`[…, V']` of guessed features `[…, d]`; `head` is the target's."""
        return head(hidden).to(hidden.device)

    # --- Fitting a target -------------------------------------------------------------------------

    def mismatches(self, target: Target) -> list[str]:
        """One sentence for everything that does not fit."""
        problems = size_misfits(self.width, self.vocabulary, target)
        return problems + self._layers_beyond(target) + placing_misfits(self, target)

    def _layers_beyond(self, target: Target) -> list[str]:
        count = target.text_config.num_hidden_layers
        beyond = [i for i in self.feature_layers(target) if not 0 <= i <= count]
        if not beyond:
            return []
        return [f"draft reads layers {beyond}, target has layers 0 to {count - 1}"]

    def check(self, target: Target) -> None:
        problems = self.mismatches(target)
        if problems:
            raise DraftMismatchError(self.name, target.name, problems)

    # --- Reading a prompt -------------------------------------------------------------------------

    def read(self, seen: Sequence[Seen]) -> Reading:
        """Lay out the rows of texts, images compressed; each as if it were alone."""
        return read(self, seen)

    # --- Drafting ---------------------------------------------------------------------------------

    def compile_passes(self) -> None:
        """Compile growing dynamic trees and reading what was accepted."""
        if not self.compiled:
            self.compiled = True
            self.grow = compiled(self.grow, constant=True)  # type: ignore[method-assign]
            self.follow = compiled(self.follow)  # type: ignore[method-assign]

    def grow(
        self,
        roots: Tensor,
        first: Tensor,
        globals_: Tensor,
        position: Tensor,
        shape: TreeShape,
        embedding: nn.Embedding,
        head: nn.Linear,
        cache: SlotCache,
    ) -> Tree:
        """Grow a dynamic tree, its keys in the cache's window.

        Args:
            roots: `[b]` tokens.
            first: `[b, d]` guessed features at the roots.
            globals_: `[b, d]` of the last image.
            position: `[b]` draft positions of the roots.
            shape: the budget.
            embedding: of the draft's tokens.
            head: the target's.
            cache: the draft's own.
        """
        expand = self.expander(first, globals_, position, embedding, head, cache)
        return grow_dynamic(roots, self.logits(first, head), expand, shape, self.token_map)

    def expander(
        self,
        first: Tensor,
        globals_: Tensor,
        position: Tensor,
        embedding: nn.Embedding,
        head: nn.Linear,
        cache: SlotCache,
    ) -> Expand:
        """What continues a tree level by level; arguments as in `grow`."""
        hidden, level = first[:, None], 0

        def expand(token: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
            nonlocal hidden, level
            w, m = seen.shape[1:]
            feature = hidden.gather(1, origin[..., None].expand(-1, -1, hidden.shape[-1]))
            x = self.combine(embedding(token), feature, globals_[:, None])
            cache.step(w, m - w)
            mask = cache.attention_mask(seen, x.dtype)
            hidden = self(x, (position + level)[:, None].expand(-1, w), mask, cache)
            level += 1
            return self.logits(hidden, head)

        return expand

    def follow(
        self,
        tokens: Tensor,
        features: Tensor,
        counts: Tensor,
        globals_: Tensor,
        position: Tensor,
        embedding: nn.Embedding,
        cache: SlotCache,
    ) -> Tensor:
        """Read accepted tokens, and guess the feature behind the last of each request.

        Args:
            tokens: `[b, n]`, padded on the right.
            features: `[b, n, f]` of the target, at the position before each.
            counts: `[b]` tokens that are real.
            globals_: `[b, d]` of the last image.
            position: `[b]` draft position of each first token.
            embedding: of the tokens.
            cache: the draft's own, its window set.

        Returns:
            `[b, d]`.
        """
        b, n = tokens.shape
        x = self.combine(embedding(tokens), self.fuse(features), globals_[:, None])
        place = torch.arange(n, device=tokens.device)
        causal = (place <= place[:, None]).expand(b, -1, -1)
        mask = cache.attention_mask(causal, x.dtype)
        hidden = self(x, position[:, None] + place, mask, cache)
        return hidden[torch.arange(b, device=tokens.device), counts - 1]

    def session(self, target: Target, slots: int, capacity: int) -> SequentialSession:
        return SequentialSession(self, target, slots, capacity)
