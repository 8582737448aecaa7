"""Keys and values in preallocated slots, one slot a request, compacted in place.

A *slot position* says where a key lies; what a rotary embedding sees is another number, which a
slot's `offset` keeps: under M-RoPE an image moves it. Decoder layers that carry a state instead of
keys have one of their own (`vispec.decoding.states`).

What a forward pass touches (`step`, `write`, `attention_mask`) is tensors and numbers that rarely
change, so that a pass can be compiled; the rest is the host's bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache, CacheLayerMixin

from vispec.decoding.states import StateLayer

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
    """Static key/value buffers, and the states of recurrent layers.

    Before a forward pass `window` says which slots take part and how many tokens are written at
    each one's tail; the pass then reads the narrowed buffers, and a mask (`attention_mask`) hides
    what is not a request's own. Written tokens count only once `keep` has accepted them.

    Args:
        shapes: `(kv_heads, head_dim)` of every decoder layer, None where it keeps a state instead.
        slots: requests that fit at the same time.
        capacity: positions per slot; rounded up to a multiple of `READ_STEP`.
        dtype: of keys and values.
        device: where the passes begin.
        devices: where each layer's buffers live; all with `device` by default.
        compiled: the passes are compiled, once for reads of any length.
    """

    def __init__(
        self,
        *,
        shapes: Sequence[tuple[int, int] | None],
        slots: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        devices: Sequence[torch.device] | None = None,
        compiled: bool = False,
    ) -> None:
        self.states = {i: StateLayer(slots) for i, shape in enumerate(shapes) if shape is None}
        super().__init__(
            layers=[
                self.states.get(i) or _SlotLayer(self, i)  # type: ignore[misc]
                for i in range(len(shapes))
            ]
        )
        self.capacity, self._device = _round_up(capacity), device
        self.stores: list[Tensor] = []
        """One for all layers of a shape and device.

        `[layers, 2, slots, kv_heads, capacity, head_dim]`.
        """
        # A view a layer: a compiled pass writes into a view in place, but copies a whole store.
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        kinds = list(zip(shapes, devices or [device] * len(shapes), strict=True))
        self._layers_of: list[list[int]] = []
        for kind in dict.fromkeys(kinds):
            shape, place = kind
            if shape is None:
                continue
            layers, (kv_heads, head_dim) = [i for i, k in enumerate(kinds) if k == kind], shape
            size = len(layers), 2, slots, kv_heads, self.capacity, head_dim
            # Zeros, not empty: hidden positions are multiplied by a weight of 0, and 0 * nan is
            # nan.
            self.stores.append(torch.zeros(size, dtype=dtype, device=place))
            self._layers_of.append(layers)
        self._view()
        self.length = [0] * slots
        self.offset = [0] * slots
        """What a rotary embedding sees less the slot position, behind each slot's prompt."""
        self.starts = [0]
        self._compiled = compiled
        self.first, self._count = 0, 1
        self.kept = torch.zeros(1, dtype=torch.long, device=device)
        self.next_position = self.kept
        self._index = self.kept[:, None]
        # Its length is the reads': a number that changes would make a compiled pass start anew.
        self._column = torch.zeros(0, dtype=torch.long, device=device)

    def _view(self) -> None:
        for layers, store in zip(self._layers_of, self.stores, strict=True):
            self._keys |= {i: layer[0] for i, layer in zip(layers, store, strict=True)}
            self._values |= {i: layer[1] for i, layer in zip(layers, store, strict=True)}

    def widen(self, capacity: int) -> None:
        """Make room for more positions per slot, where there is less; what is written stays."""
        if capacity <= self.capacity:
            return
        more = _round_up(capacity) - self.capacity
        self.stores = [functional.pad(store, (0, 0, 0, more)) for store in self.stores]
        self.capacity += more
        self._view()

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
        self.first, self._count = first, count
        kept = self.length[first : first + count]
        self.starts = [length + behind for length in kept]
        end = max(self.starts) + width
        if end > self.capacity:
            raise ValueError(f"{end} positions do not fit a slot of {self.capacity}")
        read = end if exact else min(_round_up(end), self.capacity)
        self._column = torch.arange(read, device=self._device)
        moved = [k + o for k, o in zip(kept, self.offset[first : first + count], strict=True)]
        self.kept, self.next_position = torch.tensor([kept, moved], device=self._device).unbind()
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
        slots = slice(self.first, self.first + keys.shape[0])
        index, found = self._index, []
        if index.device != keys.device:
            index = index.to(keys.device)
        for buffer, new in ((self._keys[layer], keys), (self._values[layer], values)):
            if keys.shape[0] == 1:
                # Several times faster than a scatter.
                buffer[self.first].index_copy_(1, index[0], new[0])
            else:
                buffer[slots].scatter_(2, index[:, None, :, None].expand(new.shape), new)
            found.append(buffer[slots, :, : self.read_length])
        return found[0], found[1]

    # --- States, as models ask for them -------------------------------------------------------

    @property
    def is_linear(self) -> list[bool]:
        return [index in self.states for index in range(len(self.layers))]

    @property
    def slots(self) -> slice:
        """Of the current window."""
        return slice(self.first, self.first + self._count)

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        return self.starts[0] > 0

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        state = self.states[layer_idx]
        return state.window(state_idx, self.slots) if self.has_previous_state() else None

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **options: Any
    ) -> Tensor:
        kernel, fresh = options["conv_kernel_size"], not self.has_previous_state()
        return self.states[layer_idx].see(conv_states, state_idx, self.slots, kernel, fresh)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        state = self.states[layer_idx]
        return state.memory(state_idx, self.slots) if self.has_previous_state() else None

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **options: Any
    ) -> Tensor:
        return self.states[layer_idx].reach(recurrent_states, state_idx, self.slots)

    # --- Bookkeeping --------------------------------------------------------------------------

    def keep(self, slot: int, nodes: Sequence[int]) -> None:
        """Append the written tokens `nodes` (ascending window offsets) to `slot`, drop the rest."""
        start, count = self.length[slot], len(nodes)
        if nodes[-1] != count - 1:
            rows = torch.tensor(nodes, device=self._device) + start
            for store in self.stores:
                moved = store[:, :, slot].index_select(-2, rows.to(store.device))
                store[:, :, slot, :, start : start + count].copy_(moved)
        if self.states:
            window = self.first, self._count
            self.first, self._count = slot, 1  # for layers that run again
            for state in self.states.values():
                state.keep(slot, nodes, self._index.shape[1])
            self.first, self._count = window
        self.length[slot] = start + count

    def move(self, source: int, target: int) -> None:
        """Let `target` take over what `source` holds; `source` becomes empty."""
        if source != target:
            length = self.length[source]
            for store in self.stores:
                store[:, :, target, :, :length].copy_(store[:, :, source, :, :length])
            for state in self.states.values():
                state.move(source, target)
            self.length[target], self.offset[target] = length, self.offset[source]
        self.length[source] = self.offset[source] = 0

    def attention_mask(
        self,
        block: Tensor,
        dtype: torch.dtype,
        *,
        depth: Tensor | None = None,
        sliding: int | None = None,
    ) -> Tensor:
        """Additive mask of the current window: the slot's own past, and `block` behind it.

        Args:
            block: `[b, n, m]` bool, which of the `m` tokens behind the kept ones each of the `n`
                queries sees; the queries are the last `n` of them.
            dtype: of the attention scores.
            depth: `[b, n]` of each query below the kept ones, for `sliding`.
            sliding: how many positions back a layer sees, a query's own included; None is all.

        Returns:
            `[b, 1, n, read_length]`, 0 where a key is seen and the lowest number elsewhere.
        """
        b, n, m = block.shape
        device = block.device
        tails = self.kept.view(-1, 1, 1)
        seen = (self._column < tails).expand(b, n, -1)
        if sliding is not None and depth is not None:
            seen = seen & (self._column > tails + depth[..., None] - sliding)
            block = block & (depth[:, :, None] - depth[:, None, :] < sliding)
        newest = (tails + torch.arange(m, device=device)).expand(b, n, m)
        seen = seen.scatter(2, newest, block)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _round_up(positions: int) -> int:
    return -(-positions // READ_STEP) * READ_STEP
