"""Vision-language models, one short file a family, chosen by the checkpoint's `model_type`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from vispec.errors import UnsupportedFamilyError
from vispec.targets.base import Prefill, Prompt, Target, Verification
from vispec.targets.llava import LlavaTarget

FAMILIES: dict[str, type[Target]] = {
    model_type: family for family in (LlavaTarget,) for model_type in family.model_types
}

__all__ = ["FAMILIES", "Prefill", "Prompt", "Target", "Verification", "family", "wrap"]


def family(model_type: str, name: str) -> type[Target]:
    """The target class for a checkpoint's `model_type`.

    Raises:
        UnsupportedFamilyError: naming the supported ones.
    """
    if model_type not in FAMILIES:
        raise UnsupportedFamilyError(model_type, sorted(FAMILIES), name)
    return FAMILIES[model_type]


def wrap(model: PreTrainedModel, processor: Any, name: str | None = None) -> Target:
    """The target for an already loaded Hugging Face model, which stays as it is."""
    name = name or model.name_or_path or type(model).__name__
    return family(model.config.model_type, name)(model, processor, name)
