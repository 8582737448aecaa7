"""Compiling the passes of a cycle."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

VARIANTS = 64
"""Shapes and settings that one function is compiled for."""
_LENGTH_AXIS = {"input_ids": -1, "inputs_embeds": -2, "position_ids": -1}
"""Where what a decoder is called with is as long as the prompt."""


def compiled(function: Callable[..., Any], *, constant: bool = False) -> Callable[..., Any]:
    """`torch.compile` with room for many tree shapes, shared with no other draft or target.

    By default all compilations of one piece of code share eight places, and a ninth shape, of
    whichever model, runs uncompiled without a word.

    Nor is it looked up at every call whether the modules are as they were when they were compiled,
    which takes a millisecond for 32 layers: weights may be written to, but dtype, hooks and layers
    may not change. (Branches that depend on tensors, such as those of rotary embeddings that grow
    with a text, are never compiled.)

    Args:
        constant: whole numbers that it is given, such as a tree's width, are constants: it is
            compiled for each. By default torch makes those unknown that it has seen change, of any
            draft; kernels are then slower, and may be taken from torch's cache on disk for others
            (2.13: of a guard `a or b` among those of a kept graph, only `b` is looked at, and none
            before it).
    """
    options: dict[str, Any] = {}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        unguarded = torch.compiler.skip_guard_on_all_nn_modules_unsafe
        options = {
            "recompile_limit": VARIANTS,
            "isolate_recompiles": True,
            "options": {"guard_filter_fn": unguarded},
        }
    made = torch.compile(function, **options)
    return _constant(made) if constant else made


def _constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function whose whole numbers are constants."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        # At every call, since any may be the first of its kind; 16 microseconds.
        with torch._dynamo.config.patch(specialize_int=True):
            return function(*args)

    return call


def lengths_may_vary(inputs: dict[str, Any]) -> bool:
    """Whether a decoder is given nothing but what can be compiled for prompts of every length."""
    given = {name for name, value in inputs.items() if value is not None}
    return given <= _LENGTH_AXIS.keys() | {"cache", "past_key_values", "use_cache"}


def let_length_vary(inputs: dict[str, Any]) -> None:
    """Mark the length of a decoder's inputs as one that varies, so that it is compiled once."""
    for name, axis in _LENGTH_AXIS.items():
        if inputs.get(name) is not None:
            torch._dynamo.maybe_mark_dynamic(inputs[name], inputs[name].ndim + axis)
