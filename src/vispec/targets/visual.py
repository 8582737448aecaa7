"""Which places of a prompt show what, and whose images a batch's are.

Shapes: `t` prompt positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from inspect import signature
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

MODALITIES = {"image": 1, "video": 2}
"""What a prompt shows, and how Hugging Face marks its placeholders in `mm_token_type_ids`."""
PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos")
"""Inputs of vision towers."""


def run_towers(model: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a model's vision towers as `generate` itself does before it runs a prompt.

    Args:
        model: whose `get_image_features` and `get_video_features` are asked.
        inputs: of a prompt.

    Returns:
        the inputs with the towers' outputs for the pixels, and those outputs by modality.
    """
    shown = dict(inputs.get("mm_encoder_outputs") or {})
    used = {"mm_encoder_outputs"}
    for modality in MODALITIES:
        tower = getattr(model, f"get_{modality}_features", None)
        if tower is None:
            continue
        given = {name: inputs[name] for name in signature(tower).parameters if name in inputs}
        used |= given.keys()
        if any(given.get(name) is not None for name in PIXELS):
            shown[modality] = tower(**given, return_dict=True)
    rest = {key: value for key, value in inputs.items() if key not in used}
    return rest | ({"mm_encoder_outputs": shown} if shown else {}), shown


def index_by_count(kinds: Tensor, shown: Mapping[str, Any]) -> Tensor:
    """Deal placeholders out by how many features each image and video has.

    Args:
        kinds: `[t]`, 0 where text is, else the number of a modality.
        shown: outputs of the vision towers, by modality.

    Returns:
        `[t]`, the image or video each position belongs to, numbered as they begin; -1 for text.
    """
    index, first = torch.full_like(kinds, -1), 0
    for modality, number in MODALITIES.items():
        if modality in shown:
            sizes = torch.tensor([len(one) for one in shown[modality].pooler_output])
            numbers = torch.arange(first, first + len(sizes)).repeat_interleave(sizes)
            index[kinds == number] = numbers.to(index)
            first += len(sizes)
    begun = dict.fromkeys(index.tolist())
    begun.pop(-1, None)
    renamed = torch.full_like(index, -1)
    for number, image in enumerate(begun):
        renamed[index == image] = number
    return renamed


def part_of(output: Any, before: Tensor, count: Tensor) -> Any:
    """What of a batch's encoded images belongs to a row.

    Args:
        output: of a vision tower.
        before: placeholders in the rows before.
        count: placeholders in the row.
    """
    ends = [0, *accumulate(len(one) for one in output.pooler_output)]
    part = slice(ends.index(int(before)), ends.index(int(before + count)))
    own = copy(output)
    own["pooler_output"] = output.pooler_output[part]
    deep = getattr(output, "deepstack_features", None)
    if deep is not None:
        own["deepstack_features"] = [layer[part] for layer in deep]
    return own


def spans(kinds: Tensor) -> list[tuple[int, int]]:
    """`(first, behind)` of every run of the same placeholder in `kinds [t]`."""
    edges = torch.cat([kinds.new_zeros(1), kinds, kinds.new_zeros(1)])
    changes = (edges[1:] != edges[:-1]).nonzero()[:, 0].tolist()
    return [(start, end) for start, end in pairwise(changes) if int(kinds[start]) != 0]
