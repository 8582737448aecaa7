"""Looking into a model while it runs, and leaving no trace.

Every hook is about the pass over one cache only: another thread may be running the same model.
`attending` alone is about the whole model, where its own attention cannot verify trees: such a
model should run in one thread.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache as cache_results
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from vispec.decoding.cache import SlotCache
from vispec.decoding.states import PathWindows, StateLayer
from vispec.decoding.tree import Tree, ancestors
from vispec.errors import VispecError

CACHE_NAMES = ("cache", "past_key_values")
"""What Hugging Face's models call their cache, from version 5.24 on and before."""
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
"""Where a module keeps its hooks."""


def with_cache(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The argument that gives a model its cache."""
    known = signature(module.forward).parameters
    return {next((name for name in CACHE_NAMES if name in known), CACHE_NAMES[-1]): cache}


def _cache_name(kwargs: dict[str, Any], cache: Any) -> str | None:
    """Under which name a module is given this cache; None where it is not."""
    return next((name for name in CACHE_NAMES if kwargs.get(name) is cache), None)


class _Entered(Exception):  # noqa: N818 - a way out, not an error
    """Leaves a model's forward with what it calls its decoder with."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.inputs = inputs


def decoder_inputs(
    model: nn.Module, decoder: nn.Module, inputs: dict[str, Any], cache: SlotCache
) -> dict[str, Any]:
    """What a model's own forward calls its decoder with, images in the embeddings.

    The forward ends there: it returns neither the embeddings that a draft reads nor, compiled in
    one piece with its vision tower, the time that each takes.
    """

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _cache_name(kwargs, cache):
            raise _Entered(kwargs)

    # Before any hook of the user's, which the pass that follows runs.
    hook = decoder.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
    try:
        model(**inputs, **with_cache(model, cache), use_cache=True)
    except _Entered as entered:
        return entered.inputs
    finally:
        hook.remove()
    raise VispecError(
        f"{type(model).__name__} did not call its decoder as in the versions of transformers that"
        f" vispec knows; this is {transformers.__version__}: install another, or report it"
    )


@contextmanager
def attending(config: Any, implementation: str | None) -> Iterator[None]:
    """Let a decoder attend with another implementation, None leaves it its own."""
    own = config._attn_implementation
    if implementation is not None:
        config._attn_implementation = implementation
    try:
        yield
    finally:
        if implementation is not None:
            config._attn_implementation = own


class Recorded:
    """Hidden states of some layers, in the order in which they were asked for."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = layers
        self.hidden: dict[int, Tensor] = {}

    def features(self, last: Tensor) -> Tensor:
        """`[b, n, f]`, side by side; `last` where no layer was asked for. They are kept no more."""
        if not self.layers:
            return last
        side_by_side = torch.cat([self.hidden[i] for i in self.layers], -1)
        self.hidden.clear()
        return side_by_side

    def watch(self, layers: Sequence[nn.Module], cache: SlotCache | None = None) -> list[Any]:
        """Note what they are given, in passes over `cache` alone, if there is one.

        Returns:
            handles of hooks.
        """
        hooks: list[Any] = []
        for index in set(self.layers):

            def look(_: nn.Module, args: Any, kwargs: Any, out: Any = None, i: int = index) -> None:
                if cache is None or _cache_name(kwargs, cache):
                    given = args[0] if args else kwargs.get("hidden_states")
                    made = out[0] if isinstance(out, tuple) else out
                    self.hidden[i] = given if out is None else made

            if index == len(layers):
                hooks.append(layers[-1].register_forward_hook(look, with_kwargs=True))
            else:
                hooks.append(layers[index].register_forward_pre_hook(look, with_kwargs=True))
        return hooks


@contextmanager
def recorded(decoder: Any, layers: Sequence[int], cache: SlotCache) -> Iterator[Recorded]:
    """Note hidden states of a pass over `cache`.

    Args:
        layers: `i` is what decoder layer `i` is given, the number of layers what the last gives.
    """
    found = Recorded(layers)
    hooks = found.watch(decoder.layers, cache)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def watched(decoder: Any, layers: Sequence[int]) -> tuple[Any, Recorded]:
    """A decoder of the same weights whose passes are noted for good, as compiled ones have to be.

    Only the modules that are watched, and what holds them, are others than the decoder's own.
    """
    found = Recorded(layers)
    if not layers:
        return decoder, found
    decoder = copy.copy(decoder)
    decoder._modules = dict(decoder._modules)
    decoder.layers = nn.ModuleList(decoder.layers)
    for index in {min(i, len(decoder.layers) - 1) for i in layers}:
        layer = copy.copy(decoder.layers[index])
        for hooks in _HOOKS:
            setattr(layer, hooks, getattr(layer, hooks).copy())
        decoder.layers[index] = layer
    found.watch(decoder.layers)
    return decoder, found


@contextmanager
def replayed(decoder: Any, cache: SlotCache) -> Iterator[None]:
    """Let the cache's recurrent layers run again over what the pass gives them."""
    hooks = []
    for index, state in cache.states.items():

        def look(module: nn.Module, args: Any, kwargs: Any, state: StateLayer = state) -> None:
            options = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            hidden = args[0] if args else kwargs["hidden_states"]
            if any(value is cache for value in options.values()):
                state.replay = lambda row, count: module.forward(
                    hidden_states=hidden[row : row + 1, :count], **options
                )

        own = _own(decoder.layers[index], index)
        hooks += [module.register_forward_pre_hook(look, with_kwargs=True) for module in own]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def branched(decoder: Any, cache: SlotCache, tree: Tree) -> Iterator[None]:
    """Let the convolutions of a pass see every node behind its own path."""
    shape, hooks = tree.token.shape, []

    @cache_results
    def paths(kernel: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(shape[0], device=tree.parent.device)[:, None, None]
        return rows, ancestors(tree.parent, kernel)

    for index, state in cache.states.items():
        if not state.kernel:  # it reads another layer's keys
            continue
        view = PathWindows(state, cache.slots, tree.depth)

        def enter(_: nn.Module, args: Any, kwargs: Any, view: PathWindows = view) -> Any:
            name = _cache_name(kwargs, cache)
            if name is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            behind = hidden[paths(view.state.kernel)].flatten(0, 1)
            return (), {**kwargs, "hidden_states": behind, name: view}

        def leave(_: nn.Module, args: Any, kwargs: Any, out: Any, view: PathWindows = view) -> Any:
            return out[:, -1].unflatten(0, shape) if _cache_name(kwargs, view) else None

        for module in _own(decoder.layers[index], index):
            hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _own(layer: nn.Module, index: int) -> list[nn.Module]:
    """The parts of a decoder layer that use the cache."""
    return [m for m in layer.modules() if getattr(m, "layer_idx", None) == index]


def execution_device(layer: nn.Module) -> torch.device:
    """Where a layer computes, which of an offloaded one is not where its weights lie."""
    hook = getattr(layer, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(layer.parameters()).device
