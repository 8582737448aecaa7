"""The transformer adapter: tokens know each other, and nothing of their order."""

from __future__ import annotations

import torch

from vispec.adapters import TransformerAdapter


def test_one_token_changes_all_others_of_its_image_alone() -> None:
    torch.manual_seed(0)
    made, visual = TransformerAdapter(8, 2, 16).eval(), torch.randn(2, 5, 8)
    other = visual.clone()
    other[0, 2, 0] += 1
    change = (made(visual).tokens - made(other).tokens).abs().amax(-1)
    assert (change[0] > 1e-4).all()
    assert (change[1] == 0).all()


def test_the_order_of_tokens_is_kept_and_does_not_matter() -> None:
    torch.manual_seed(0)
    made, visual = TransformerAdapter(8, 2, 16, layers=2).eval(), torch.randn(1, 6, 8)
    torch.testing.assert_close(made(visual.flip(1)).tokens, made(visual).tokens.flip(1))


def test_training_and_drafting_see_the_same() -> None:
    """Torch has a path of its own for what needs no gradients."""
    torch.manual_seed(0)
    made, visual = TransformerAdapter(8, 2, 16), torch.randn(2, 6, 8)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    learning = made.train()(visual, mask).tokens
    with torch.inference_mode():
        drafting = made.eval()(visual, mask).tokens
    torch.testing.assert_close(learning[0], drafting[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(learning[1, :4], drafting[1, :4], rtol=0, atol=1e-5)
