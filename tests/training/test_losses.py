"""Losses against numbers worked out one position at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vispec.training import losses


def pair(m: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, m, size, generator=generator, dtype=torch.float64) * 2
    return first, second


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def test_features_are_compared_by_smooth_l1() -> None:
    guess, feature = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.5, 1.0]])
    # 0.5 * 0.5^2 within one, 2 - 0.5 beyond.
    assert losses.feature_regression(guess, feature).item() == pytest.approx((0.125 + 1.5) / 2)


def test_the_soft_cross_entropy_is_the_targets_expected_surprise() -> None:
    logits, target = pair(6, 5)
    by_hand = [
        -sum(p * math.log(q) for p, q in zip(softmax(t), softmax(d), strict=True))
        for d, t in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    found = losses.soft_cross_entropy(logits, target).item()
    assert found == pytest.approx(sum(by_hand) / len(by_hand))


def test_the_soft_cross_entropy_is_least_at_the_target_itself() -> None:
    _, target = pair(4, 7)
    logits = target.clone().requires_grad_()
    losses.soft_cross_entropy(logits, target).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(target))


def test_the_probability_distance_is_twice_the_chance_of_a_rejection() -> None:
    logits, target = pair(6, 5)
    rejected = []
    for d, t in zip(logits.tolist(), target.tolist(), strict=True):
        accepted = sum(min(p, q) for p, q in zip(softmax(t), softmax(d), strict=True))
        rejected.append(1 - accepted)
    found = losses.probability_distance(logits, target).item()
    assert found == pytest.approx(2 * sum(rejected) / len(rejected))


@pytest.mark.parametrize("top", [1, 2, 4, 9])
def test_list_mle_is_the_chance_of_drawing_the_targets_order(top: int) -> None:
    logits, target = pair(5, 6, seed=3)
    total = 0.0
    for d, t in zip(logits.tolist(), target.tolist(), strict=True):
        order = sorted(range(6), key=lambda token: -t[token])[:top]
        for place, token in enumerate(order):
            rest = [math.exp(d[other]) for other in order[place:]]
            total -= math.log(math.exp(d[token]) / sum(rest))
    assert losses.list_mle(logits, target, top).item() == pytest.approx(total / 5)


def test_list_mle_prefers_the_targets_order() -> None:
    target = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    right = losses.list_mle(target * 5, target, 3)
    swapped = losses.list_mle(target[:, [1, 0, 2, 3]] * 5, target, 3)
    assert right < swapped


def test_the_stages_are_sums_of_their_parts_in_the_papers_shares() -> None:
    (guess, feature), (logits, target) = pair(4, 8), pair(4, 12, seed=1)
    parts = [
        losses.feature_regression(guess, feature),
        losses.soft_cross_entropy(logits, target),
        losses.list_mle(logits, target),
        losses.probability_distance(logits, target),
    ]
    text = losses.text_stage(guess, feature, logits, target)
    assert text.item() == pytest.approx((parts[0] + 0.1 * (parts[1] + 0.1 * parts[2])).item())
    multimodal = losses.multimodal_stage(guess, feature, logits, target)
    assert multimodal.item() == pytest.approx((10 * parts[3] + 0.1 * parts[2]).item())


def test_the_multimodal_stage_leaves_features_free() -> None:
    guess, feature = pair(3, 8)
    logits, target = pair(3, 12)
    first = losses.multimodal_stage(guess, feature, logits, target)
    assert torch.equal(first, losses.multimodal_stage(guess * 9, feature, logits, target))


def test_losses_stay_finite_where_the_target_is_sure() -> None:
    logits = torch.randn(3, 6, requires_grad=True)
    target = torch.full((3, 6), -1e4).index_fill(1, torch.tensor([2]), 1e4)
    guess = torch.randn(3, 4, requires_grad=True)
    for stage in (losses.text_stage, losses.multimodal_stage):
        loss = stage(guess, torch.randn(3, 4), logits, target)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_accuracy_is_the_share_of_equal_choices() -> None:
    logits = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 5.0], [3.0, 0.0]])
    target = torch.tensor([[0.0, 9.0], [0.0, 1.0], [4.0, 5.0], [1.0, 0.0]])
    assert losses.accuracy(logits, target) == 0.75
