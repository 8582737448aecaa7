"""Vision-language models, one short file a family, chosen by the checkpoint's `model_type`."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vispec.errors import UnsupportedFamilyError
from vispec.targets.base import Prefill, Prompt, Target, Verification
from vispec.targets.gemma4 import Gemma4Target
from vispec.targets.plain import PlainTarget
from vispec.targets.qwen_vl import MropeTarget
from vispec.targets.tiles import ClosedTileTarget, GlobalTileTarget, SpanTarget

FAMILIES: dict[str, type[Target]] = {
    model_type: family
    for family in (
        PlainTarget,
        Gemma4Target,
        MropeTarget,
        SpanTarget,
        GlobalTileTarget,
        ClosedTileTarget,
    )
    for model_type in family.model_types
}

__all__ = [
    "FAMILIES",
    "Prefill",
    "Prompt",
    "Target",
    "Verification",
    "auto_class",
    "family",
    "wrap",
]


def family(model_type: str, name: str) -> type[Target]:
    """The target class for a checkpoint's `model_type`.

    Raises:
        UnsupportedFamilyError: naming the supported ones.
    """
    if model_type not in FAMILIES:
        raise UnsupportedFamilyError(model_type, sorted(FAMILIES), name)
    return FAMILIES[model_type]


def auto_class(model_type: str) -> Any:
    """Hugging Face's class that loads the models of a family: with images, or of text alone."""
    shows = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if shows else AutoModelForCausalLM


def wrap(model: PreTrainedModel, processor: Any, name: str | None = None) -> Target:
    """The target for an already loaded Hugging Face model, which stays as it is."""
    name = name or model.name_or_path or type(model).__name__
    return family(model.config.model_type, name)(model, processor, name)
