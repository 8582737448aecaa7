"""A batch of conversations, as `generate` hands it over, taken apart.

Shapes: `b` conversations, `t` positions, padding included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vispec.errors import ImageError
from vispec.targets.base import Target
from vispec.targets.visual import MODALITIES, PIXELS, part_of


def split_batch(
    target: Target, input_ids: Tensor, inputs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Split what `generate` was given for several conversations into one set of inputs each.

    Args:
        target: whose placeholders they are.
        input_ids: `[b, t]`, padded on the left.
        inputs: the other inputs of the model's forward; `attention_mask [b, t]` tells padding.

    Raises:
        ImageError: for pixels of several conversations that `generate` has not encoded, since
            nothing tells whose they are.
    """
    given = {key: value for key, value in inputs.items() if value is not None}
    mask = given.pop("attention_mask", torch.ones_like(input_ids)).bool()
    shown = given.pop("mm_encoder_outputs", {})
    if len(input_ids) > 1 and any(name in given for name in PIXELS):
        raise ImageError(
            f"pixels of {len(input_ids)} conversations at once cannot be told apart for models"
            f" of type '{target.model_type}'; call generate with one conversation at a time"
        )
    kinds = target.placeholders({"input_ids": input_ids} | given)
    found = []
    for index, ids in enumerate(input_ids):
        row: dict[str, Any] = {"input_ids": ids[mask[index]][None]}
        for key, value in given.items():
            if not isinstance(value, Tensor):
                continue  # settings of `generate`, and its own cache
            if value.shape[-2:] == input_ids.shape:
                row[key] = value[..., index, mask[index]].unsqueeze(-2)
            elif len(input_ids) == 1:
                row[key] = value
        counts = {name: kinds.eq(number).sum(1) for name, number in MODALITIES.items()}
        own = {
            name: part_of(output, counts[name][:index].sum(), counts[name][index])
            for name, output in shown.items()
            if output is not None and counts[name][index]
        }
        found.append(row | ({"mm_encoder_outputs": own} if own else {}))
    return found
