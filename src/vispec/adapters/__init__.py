"""Small modules that compress an image for a draft."""

from vispec.adapters.base import Adapter, Compressed
from vispec.adapters.query import QueryAdapter

__all__ = ["Adapter", "Compressed", "QueryAdapter"]
