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
    """
    known = inspect.signature(torch.compile).parameters
    wanted = {"recompile_limit": VARIANTS, "isolate_recompiles": True}
    options: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}
    return torch.compile(function, **options)
