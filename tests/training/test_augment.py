"""Random views of photographs."""

from __future__ import annotations

import numpy as np
import torch

from vispec.training.augment import augment, erase


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 6, 6, generator=generator) * 255
    large = torch.nn.functional.interpolate(small, size=48, mode="bilinear")
    return large.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def test_views_have_the_same_size_and_type_and_differ() -> None:
    images = pictures(8)
    seen = augment(images, np.random.default_rng(0))
    assert seen.shape == images.shape
    assert seen.dtype == torch.uint8
    assert all(not torch.equal(a, b) for a, b in zip(images, seen, strict=True))


def test_the_generator_decides_everything() -> None:
    images = pictures(4)
    one, same, other = (augment(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_views_keep_to_the_picture_and_its_brightness() -> None:
    """A flat picture stays flat, tinted by at most a fifth of its scale and of the range."""
    flat = torch.full((64, 48, 48, 3), 100, dtype=torch.uint8)
    seen = augment(flat, np.random.default_rng(3)).float()
    assert (seen.amax((1, 2)) - seen.amin((1, 2))).max() <= 1
    assert seen.min() >= 100 * 0.8 - 26
    assert seen.max() <= 100 * 1.2 + 26


def test_half_of_the_views_are_mirrored() -> None:
    ramp = torch.arange(48).mul(5).to(torch.uint8).view(1, 1, 48, 1).expand(200, 48, 48, 3)
    seen = augment(ramp.contiguous(), np.random.default_rng(4)).float()
    falling = (seen[:, :, 0] > seen[:, :, -1]).float().mean((1, 2)) > 0.5
    assert 70 < int(falling.sum()) < 130


def test_pictures_whose_places_are_named_are_only_tinted() -> None:
    images = torch.randint(0, 255, (4, 32, 32, 3), dtype=torch.uint8)
    images[:, :, :16] //= 4  # the left half is darker
    seen = augment(images, np.random.default_rng(0), [True, False, True, True]).float()
    for before, after in ((images[i].float(), seen[i]) for i in (0, 2, 3)):
        for channel in range(3):
            pair = torch.stack([before[..., channel].flatten(), after[..., channel].flatten()])
            assert torch.corrcoef(pair)[0, 1] > 0.97


def test_pictures_lose_patches_up_to_their_share() -> None:
    images = pictures(400)
    most = np.array([0.0, 0.5] * 200)
    seen = erase(images, np.random.default_rng(0), 16, most)
    lost = (seen != images).any(3).reshape(400, 3, 16, 3, 16).any((2, 4)).float().mean((1, 2))
    assert not lost[::2].any()
    assert 0.2 < lost[1::2].mean() < 0.3
    painted = seen[1][(seen[1] != images[1]).any(2)]
    assert torch.equal(painted[0], images[1].float().mean((0, 1)).round().to(torch.uint8))
    assert torch.equal(seen, erase(images, np.random.default_rng(0), 16, most))
