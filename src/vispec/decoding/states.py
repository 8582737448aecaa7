"""The states of recurrent decoder layers, one a slot: short convolutions and linear attention.

A state knows no positions: what a pass added cannot be hidden by a mask. So a pass leaves the
slots' states alone until it is known how many of its tokens are kept. The window of a convolution
is then cut from what the pass saw; a memory that went too far is made again from the slot's old
one, by running that one layer over the inputs that it had (a *replay*).

A convolution sees a few tokens back, so a tree costs it little: each node is run behind its own
path (`PathWindows`). A memory is as large as many tokens' keys; models that have some verify
chains, whose kept tokens are the first ones of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Replay = Callable[[int, int], None]
"""`(row, count)`: run a layer over the first `count` inputs that a row of the last pass had."""


class StateLayer:
    """One recurrent layer's states for every slot of a cache; a layer may have several of a kind.

    Args:
        slots: requests that fit at the same time.

    Attributes:
        replay: runs the layer again; set for every pass by whoever runs it.
    """

    record_past = True
    """Tells models to leave the window alone, which they overwrite when given one token."""
    is_compileable = True
    supports_early_init = False

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.replay: Replay | None = None
        self._windows: dict[int, Tensor] = {}  # [slots, channels, kernel]
        self._memories: dict[int, Tensor] = {}  # [slots, …]
        # What the last pass saw, window and new inputs, and the memory that it ended with.
        self._seen: dict[int, Tensor] = {}
        self._reached: dict[int, Tensor] = {}
        self._first = 0

    def window(self, index: int, slots: slice) -> Tensor | None:
        return self._windows[index][slots] if index in self._windows else None

    def memory(self, index: int, slots: slice) -> Tensor | None:
        return self._memories[index][slots] if index in self._memories else None

    def see(self, new: Tensor, index: int, slots: slice, kernel: int, fresh: bool) -> Tensor:
        """Take in a pass's inputs of a convolution.

        Args:
            new: `[b, channels, n]`.
            index: which of the layer's convolutions.
            slots: of the pass.
            kernel: width of the convolution.
            fresh: the slots hold no past.

        Returns:
            `[b, channels, kernel + n]`, the past before them; of a fresh slot only `new`.
        """
        if index not in self._windows:
            self._windows[index] = new.new_zeros(self.slots, new.shape[1], kernel)
        self._first = slots.start
        seen = new if fresh else torch.cat([self._windows[index][slots], new], -1)
        self._seen[index] = F.pad(new, (kernel, 0)) if fresh else seen
        return seen

    @property
    def kernel(self) -> int:
        """Width of the layer's convolution, 0 where it has none."""
        return self._windows[0].shape[-1] if self._windows else 0

    def see_paths(self, paths: Tensor, depth: Tensor, index: int, slots: slice) -> Tensor:
        """Take in a pass's inputs of a convolution, every node of a tree behind its own path.

        Args:
            paths: `[b n, channels, kernel]`, each node's ancestors and itself, itself last.
            depth: `[b, n]` of the nodes.
            index: which of the layer's convolutions.
            slots: of the pass.

        Returns:
            the same, what lies before the root taken from the slots' past.
        """
        new = paths.unflatten(0, depth.shape)
        kernel = new.shape[-1]
        window = self._windows[index][slots]
        self.see(new[..., -1].transpose(1, 2), index, slots, kernel, fresh=False)
        back = torch.arange(kernel - 1, -1, -1, device=depth.device) - depth[..., None]
        place = (kernel - back).clamp(max=kernel - 1)[:, :, None].expand(new.shape)
        old = window[:, None].expand(new.shape).gather(-1, place)
        return torch.where(back[:, :, None] > 0, old, new).flatten(0, 1)

    def reach(self, memory: Tensor, index: int, slots: slice) -> Tensor:
        """Take in the memory `[b, …]` that a pass ended with."""
        if index not in self._memories:
            self._memories[index] = memory.new_zeros(self.slots, *memory.shape[1:])
        self._first = slots.start
        self._reached[index] = memory
        return memory

    def keep(self, slot: int, nodes: Sequence[int], width: int) -> None:
        """Let a slot have seen `nodes` of the last pass, which was `width` wide.

        Raises:
            ValueError: if there are memories and the kept tokens are not the first ones.
        """
        row, count = slot - self._first, len(nodes)
        if self._memories and nodes[-1] != count - 1:
            raise ValueError(
                f"a memory cannot keep tokens {list(nodes)}: it has seen others before"
            )
        seen = {index: values[row] for index, values in self._seen.items()}
        if count < width and self._memories:
            if self.replay is None:
                raise RuntimeError("a pass over a recurrent layer was not recorded")
            whole = self._reached, self._seen, self._first
            self._reached, self._seen = {}, {}
            self.replay(row, count)
            for index, memory in self._reached.items():
                self._memories[index][slot] = memory[0]
            self._reached, self._seen, self._first = whole
        else:
            for index, memory in self._reached.items():
                self._memories[index][slot] = memory[row]
        for index, window in self._windows.items():
            kernel = window.shape[-1]
            if nodes[-1] == count - 1:
                window[slot] = seen[index][..., count : count + kernel]
            else:
                kept = torch.tensor(nodes, device=window.device) + kernel
                past = torch.arange(kernel, device=window.device)
                window[slot] = seen[index][..., torch.cat([past, kept])[-kernel:]]

    def move(self, source: int, target: int) -> None:
        """Let slot `target` take over what slot `source` holds."""
        for states in (*self._windows.values(), *self._memories.values()):
            states[target] = states[source]


class PathWindows:
    """The cache of a tree's pass, as a layer with a convolution is given it.

    The layer is run over `[b n, kernel, d]`, a row for every node: its path, and itself last.

    Args:
        state: of the layer.
        slots: of the pass.
        depth: `[b, n]` of the nodes.
    """

    def __init__(self, state: StateLayer, slots: slice, depth: Tensor) -> None:
        self.state, self.slots, self.depth = state, slots, depth

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """The rows have their past with them."""

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **options: Any
    ) -> Tensor:
        return self.state.see_paths(conv_states, self.depth, state_idx, self.slots)
