"""Drafts: anything that proposes trees of tokens."""

from vispec.drafts.base import Draft, DraftSession
from vispec.drafts.eagle import EagleConfig, EagleDraft
from vispec.drafts.eagle3 import Eagle3Config, Eagle3Draft

__all__ = [
    "Draft",
    "DraftSession",
    "Eagle3Config",
    "Eagle3Draft",
    "EagleConfig",
    "EagleDraft",
]
