"""Drafts: anything that proposes trees of tokens."""

from vispec.drafts.base import Draft, DraftSession
from vispec.drafts.eagle import EagleConfig, EagleDraft

__all__ = ["Draft", "DraftSession", "EagleConfig", "EagleDraft"]
