"""The pruning adapter keeps what a learned query attends to most."""

from __future__ import annotations

import torch

from vispec.adapters import PruningAdapter


def made() -> PruningAdapter:
    torch.manual_seed(0)
    adapter = PruningAdapter(6, 3).double()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter


def test_the_most_attended_stay_in_their_order() -> None:
    adapter, asked = made(), torch.randn(1, 6).double()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        visual = torch.randn(1, 9, 6, generator=generator).double()
        query = adapter.query + adapter.asked.weight @ asked[0]
        scores = torch.stack([query @ (adapter.key.weight @ token) for token in visual[0]]) / 6**0.5
        best = sorted(scores.argsort(descending=True)[:3].tolist())
        mean = visual[0].mean(0)
        expected = torch.stack(
            [mean + 2 * scores[i].sigmoid() * (visual[0, i] - mean) for i in best]
        )
        torch.testing.assert_close(adapter(visual, None, asked).tokens[0], expected)


def test_what_is_asked_changes_what_is_kept() -> None:
    adapter, visual = made(), torch.randn(1, 40, 6).double()
    asked = torch.randn(30, 1, 6).double()
    kept = {tuple(adapter(visual, None, one).tokens[0, :, 0].tolist()) for one in asked}
    assert len(kept) > 5


def test_an_image_of_few_tokens_keeps_all() -> None:
    assert made()(torch.randn(1, 2, 6).double()).tokens.shape == (1, 2, 6)
