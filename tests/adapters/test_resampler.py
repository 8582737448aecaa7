"""The resampler: as many tokens for every image, whatever their order."""

from __future__ import annotations

import torch

from vispec.adapters import ResamplerAdapter


def test_every_image_becomes_as_many_tokens() -> None:
    torch.manual_seed(0)
    made = ResamplerAdapter(8, 2, 3, 16, layers=2)
    for n in (1, 3, 20):
        assert made(torch.randn(2, n, 8)).tokens.shape == (2, 3, 8)


def test_the_order_of_an_images_tokens_does_not_matter() -> None:
    torch.manual_seed(0)
    made, visual = ResamplerAdapter(8, 2, 3, 16).double(), torch.randn(1, 7, 8).double()
    torch.testing.assert_close(made(visual.flip(1)).tokens, made(visual).tokens)


def test_all_tokens_are_read() -> None:
    torch.manual_seed(0)
    made, visual = ResamplerAdapter(8, 2, 3, 16), torch.randn(1, 7, 8, requires_grad=True)
    made(visual).tokens.pow(2).sum().backward()
    assert visual.grad is not None
    assert (visual.grad.abs().amax(-1) > 0).all()
