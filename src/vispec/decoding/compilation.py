"""Compiling the passes of a cycle."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

VARIANTS = 64
"""Shapes and settings that one function is compiled for."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` with room for many tree shapes, shared with no other draft or target.

    By default all compilations of one piece of code share eight places, and a ninth shape, of
    whichever model, runs uncompiled without a word.

    Nor is it looked up at every call whether the modules are as they were when they were compiled,
    which takes a millisecond for 32 layers: weights may be written to, but dtype, hooks and layers
    may not change. (Branches that depend on tensors, such as those of rotary embeddings that grow
    with a text, are never compiled.)
    """
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        return torch.compile(function)
    unguarded = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    options: dict[str, Any] = {
        "recompile_limit": VARIANTS,
        "isolate_recompiles": True,
        "options": {"guard_filter_fn": unguarded},
    }
    return torch.compile(function, **options)
