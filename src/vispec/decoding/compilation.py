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

    Nor does a call look whether the modules are still those that were compiled: for a model of 32
    layers that takes a millisecond each time. Weights may change, but not what a model is made of.
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
