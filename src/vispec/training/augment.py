"""Random views of photographs, so that few of them go a long way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def augment(
    images: Tensor, rng: np.random.Generator, placed: Sequence[bool] | np.ndarray = ()
) -> Tensor:
    """Crop, mirror and tint every image on its own; size and type stay.

    Crops keep 45 to 100 % of the area with its shape changed by up to a fifth, half of the images
    are mirrored, and each channel is scaled and shifted by up to a fifth.

    Args:
        images: ``[b, size, size, 3]`` uint8.
        rng: decides everything.
        placed: which images have text that says what is where, or how many there are; those are
            tinted only. None by default.
    """
    count = len(images)
    area, shape = rng.uniform(0.45, 1.0, count), rng.uniform(-0.2, 0.2, count)
    height = np.minimum(1.0, np.sqrt(area) * np.exp(shape / 2))
    width = np.minimum(1.0, np.sqrt(area) * np.exp(-shape / 2))
    mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    if len(placed):
        height, width, mirror = (np.where(placed, 1.0, x) for x in (height, width, mirror))
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1] = width * mirror, height
    theta[:, 0, 2] = (1 - width) * rng.uniform(-1, 1, count)
    theta[:, 1, 2] = (1 - height) * rng.uniform(-1, 1, count)
    scale = torch.from_numpy(rng.uniform(0.8, 1.2, (count, 1, 1, 3)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-25, 25, (count, 1, 1, 3)).astype(np.float32))
    tinted = (images.float() * scale + shift).permute(0, 3, 1, 2)
    grid = functional.affine_grid(torch.from_numpy(theta), list(tinted.shape), align_corners=False)
    seen = functional.grid_sample(tinted, grid, padding_mode="reflection", align_corners=False)
    return seen.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def erase(
    images: Tensor, rng: np.random.Generator, patch: int, most: Sequence[float] | np.ndarray
) -> Tensor:
    """Paint some patches of every image in its mean colour; size and type stay.

    A few thousand photographs are soon known by heart; half hidden ones have to be looked at.

    Args:
        images: ``[b, size, size, 3]`` uint8.
        rng: decides everything.
        patch: side of a patch, pixels.
        most: of each image, the largest share of patches that it loses; the share is drawn too.
    """
    count, side = len(images), images.shape[1] // patch
    lost = rng.random((count, side, side)) < (rng.random(count) * most)[:, None, None]
    hidden = torch.from_numpy(lost).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    mean = images.float().mean((1, 2), keepdim=True).round().to(torch.uint8)
    return torch.where(hidden[..., None], mean, images)
