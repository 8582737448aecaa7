"""Families with three positions a token, M-RoPE: time, height and width (arXiv 2409.12191)."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor

from vispec.targets.base import Target


class MropeTarget(Target):
    """Qwen-VL from the second on, and GLM-V.

    An image takes fewer positions than tokens, so every later token's position is off by what the
    images before it saved. What the model object remembers of that (`rope_deltas`) is the last
    prompt's, whosever that was; here each slot of the cache keeps its own.
    """

    model_types = (
        "qwen2_vl",
        "qwen2_5_vl",  # arXiv 2502.13923
        "qwen3_vl",
        "qwen3_vl_moe",
        "qwen3_5",
        "qwen3_5_moe",
        "glm4v",
        "glm4v_moe",
        "glm46v",
    )

    def prompt_positions(self, inputs: Mapping[str, Any]) -> tuple[Tensor, int]:
        t = inputs["input_ids"].shape[1]
        given = inputs.get("position_ids")
        if given is not None and given.ndim == 3:  # worked out by `generate`
            positions = given[-3:]
        elif any(inputs.get(f"{name}_grid_thw") is not None for name in ("image", "video")):
            index = self.model.base_model.get_rope_index
            options = {n: inputs[n] for n in signature(index).parameters if n in inputs}
            options |= {"mm_token_type_ids": self.placeholders(inputs), "attention_mask": None}
            positions, _ = index(**options)
        else:
            positions = super().prompt_positions(inputs)[0].expand(3, 1, -1)
        # Behind a long video, its own last moment may lie later than the text that follows it.
        return positions, int(positions[..., -1].max()) + 1 - t
