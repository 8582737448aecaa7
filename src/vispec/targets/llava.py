"""LLaVA 1.5: a CLIP tower, a projector and a Llama; every image has the same number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vispec.targets.base import Target


class LlavaTarget(Target):
    """`LlavaForConditionalGeneration` (Liu et al., arXiv 2310.03744)."""

    model_types = ("llava",)

    def image_index(self, inputs: Mapping[str, Any]) -> Tensor:
        """As the base says, but images without text between them are told apart by counting."""
        is_image = inputs["input_ids"][0] == self.image_token_id
        images = _images(inputs)
        if images is None:
            return torch.full_like(is_image, -1, dtype=torch.long)
        per_image = max(int(is_image.sum()) // len(images), 1)
        return torch.where(is_image, (is_image.long().cumsum(0) - 1) // per_image, -1)

    def row_images(
        self, input_ids: Tensor, inputs: Mapping[str, Any], index: int
    ) -> dict[str, Any]:
        images = _images(inputs)
        if images is None:
            return {}
        tokens = input_ids.eq(self.config.image_token_id).sum(1).tolist()
        per_image = max(sum(tokens) // len(images), 1)
        first, count = sum(tokens[:index]) // per_image, tokens[index] // per_image
        if not count:
            return {}
        own = images[first : first + count]
        if isinstance(own, Tensor):
            return {"pixel_values": own}
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=own)}}


def _images(inputs: Mapping[str, Any]) -> Tensor | list[Tensor] | None:
    """The pixels `[images, 3, h, w]`, or the features that `generate` made of them in advance."""
    encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
    return inputs.get("pixel_values") if encoded is None else list(encoded.pooler_output)
