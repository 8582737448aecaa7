"""Lossless speculative decoding for vision-language models.

import vispec

vlm = vispec.load("embedded", draft="embedded")
print(vlm.generate("Describe the picture.", images=["photo.jpg"]).text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vispec.custom_generate import speculative
    from vispec.decoding.engine import Engine, Request, Result, Stream
    from vispec.decoding.sampling import Sampling
    from vispec.decoding.stats import Stats
    from vispec.decoding.text import Piece
    from vispec.decoding.tree import SampledShape, TreeShape
    from vispec.errors import VispecError
    from vispec.hub import Card, from_pretrained, push_to_hub, save_pretrained
    from vispec.loading import load

__version__ = "0.1.0"

__all__ = [
    "Card",
    "Engine",
    "Piece",
    "Request",
    "Result",
    "SampledShape",
    "Sampling",
    "Stats",
    "Stream",
    "TreeShape",
    "VispecError",
    "from_pretrained",
    "load",
    "push_to_hub",
    "save_pretrained",
    "speculative",
]

_HOME = {
    "Card": "hub",
    "Engine": "decoding.engine",
    "Piece": "decoding.text",
    "Request": "decoding.engine",
    "Result": "decoding.engine",
    "SampledShape": "decoding.tree",
    "Sampling": "decoding.sampling",
    "Stats": "decoding.stats",
    "Stream": "decoding.engine",
    "TreeShape": "decoding.tree",
    "VispecError": "errors",
    "from_pretrained": "hub",
    "load": "loading",
    "push_to_hub": "hub",
    "save_pretrained": "hub",
    "speculative": "custom_generate",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `vispec --help` need not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'vispec' has no attribute '{name}'")
    return getattr(import_module(f"vispec.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
