"""Keys and values in preallocated slots, one slot a request, compacted in place.

A *slot position* says where a key lies; what a rotary embedding sees is another number, given to
the model separately.

What a forward pass touches (`step`, `write`, `attention_mask`) is tensors and numbers that rarely
change, so that a pass can be compiled; the rest is the host's bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

READ_STEP = 64
"""Reads are rounded up to this many positions, so that shapes change rarely."""


class _SlotLayer(CacheLayerMixin):
    """One decoder layer's view of a `SlotCache`; keeps no state of its own."""

    is_sliding = False

    def __init__(self, cache: SlotCache, index: int) -> None:
        super().__init__()
        self._cache, self._index = cache, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        return self._cache.write(self._index, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.read_length, 0

    def get_seq_length(self) -> int:
        # Only a prefill lets the model derive anything from this; a tree pass states its
        # positions and its mask.
        return self._cache.starts[0]

    def get_max_length(self) -> int:
        return self._cache.capacity


class SlotCache(Cache):
    """Static key/value buffers `[layers, 2, slots, kv_heads, capacity, head_dim]`.

    Before a forward pass `window` says which slots take part and how many tokens are written at
    each one's tail; the pass then reads the narrowed buffers, and a mask (`attention_mask`) hides
    what is not a request's own. Written tokens count only once `keep` has accepted them.

    Args:
        layers: decoder layers.
        slots: requests that fit at the same time.
        kv_heads: key/value heads.
        head_dim: size of one head.
        capacity: positions per slot; rounded up to a multiple of `READ_STEP`.
        dtype: of keys and values.
        device: where the buffers live.
        compiled: the passes are compiled, once for reads of any length.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        super().__init__(layers=[_SlotLayer(self, index) for index in range(layers)])
        self.capacity = _round_up(capacity)
        # Zeros, not empty: hidden positions are multiplied by a weight of 0, and 0 * nan is nan.
        self.store = torch.zeros(
            layers, 2, slots, kv_heads, self.capacity, head_dim, dtype=dtype, device=device
        )
        # A view a layer: a compiled pass writes into a view in place, but copies a whole store.
        self._keys = [layer[0] for layer in self.store]
        self._values = [layer[1] for layer in self.store]
        self.length = [0] * slots
        self.starts = [0]
        self._compiled = compiled
        self._first = 0
        self.kept = torch.zeros(1, dtype=torch.long, device=device)
        self._index = self.kept[:, None]
        # Its length is the reads': a number that changes would make a compiled pass start anew.
        self._column = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def read_length(self) -> int:
        """Positions that the current window's pass reads of every slot."""
        return self._column.shape[0]

    def window(
        self, first: int, count: int, width: int, *, behind: int = 0, exact: bool = False
    ) -> None:
        """Let the next forward pass write `width` tokens behind slots `first … first + count - 1`.

        Args:
            behind: tokens already written behind each slot's kept ones, to be left alone.
            exact: read exactly as far as is written (a prefill, whose own causal mask the model
                makes); otherwise reads are rounded up and the caller's mask hides the rest.

        Raises:
            ValueError: if a slot has no room for `width` more tokens.
        """
        self._first = first
        kept = self.length[first : first + count]
        self.starts = [length + behind for length in kept]
        end = max(self.starts) + width
        if end > self.capacity:
            raise ValueError(f"{end} positions do not fit a slot of {self.capacity}")
        read = end if exact else min(_round_up(end), self.capacity)
        self._column = torch.arange(read, device=self.store.device)
        self.kept = torch.tensor(kept, device=self.store.device)
        self.step(width, behind)
        if self._compiled:
            torch._dynamo.maybe_mark_dynamic(self._column, 0)
            if exact:
                # Prompts are of any length, trees of few.
                torch._dynamo.maybe_mark_dynamic(self._index, 1)

    def step(self, width: int, behind: int) -> None:
        """Narrow the window to `width` tokens of it, `behind` of them already written.

        For several passes over one window, whose whole width `window` was given.
        """
        places = torch.arange(behind, behind + width, device=self.kept.device)
        self._index = self.kept[:, None] + places

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store `[count, kv_heads, width, head_dim]` at the window, return what it may read."""
        slots = slice(self._first, self._first + keys.shape[0])
        found = []
        for buffer, new in ((self._keys[layer], keys), (self._values[layer], values)):
            if keys.shape[0] == 1:
                # Several times faster than a scatter.
                buffer[self._first].index_copy_(1, self._index[0], new[0])
            else:
                buffer[slots].scatter_(2, self._index[:, None, :, None].expand(new.shape), new)
            found.append(buffer[slots, :, : self.read_length])
        return found[0], found[1]

    def keep(self, slot: int, nodes: Sequence[int]) -> None:
        """Append the written tokens `nodes` (ascending window offsets) to `slot`, drop the rest."""
        start, count = self.length[slot], len(nodes)
        if nodes[-1] != count - 1:
            rows = torch.tensor(nodes, device=self.store.device) + start
            moved = self.store[:, :, slot].index_select(-2, rows)
            self.store[:, :, slot, :, start : start + count].copy_(moved)
        self.length[slot] = start + count

    def move(self, source: int, target: int) -> None:
        """Let `target` take over what `source` holds; `source` becomes empty."""
        if source != target:
            length = self.length[source]
            self.store[:, :, target, :, :length].copy_(self.store[:, :, source, :, :length])
            self.length[target] = length
        self.length[source] = 0

    def attention_mask(self, block: Tensor, dtype: torch.dtype) -> Tensor:
        """Additive mask of the current window: the slot's own past, and `block` behind it.

        Args:
            block: `[b, n, m]` bool, which of the `m` tokens behind the kept ones each of the `n`
                queries sees; the queries are the last `n` of them.
            dtype: of the attention scores.

        Returns:
            `[b, 1, n, read_length]`, 0 where a key is seen and the lowest number elsewhere.
        """
        b, n, m = block.shape
        device = block.device
        tails = self.kept.view(-1, 1, 1)
        seen = (self._column < tails).expand(b, n, -1)
        newest = (tails + torch.arange(m, device=device)).expand(b, n, m)
        seen = seen.scatter(2, newest, block)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _round_up(positions: int) -> int:
    return -(-positions // READ_STEP) * READ_STEP
