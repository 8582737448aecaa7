"""Losses against numbers worked out one position at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vispec.errors import SettingsError
from vispec.training import losses


def pair(m: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, m, size, generator=generator, dtype=torch.float64) * 2
    return first, second


def guess(
    logits: Tensor, true_logits: Tensor, feature: Tensor | None = None, true: Tensor | None = None
) -> losses.Guess:
    nothing = torch.zeros(len(logits), 1)
    return losses.Guess(
        nothing if feature is None else feature,
        nothing if true is None else true,
        logits,
        losses.Truth(true_logits),
    )


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def test_features_are_compared_by_smooth_l1() -> None:
    pair = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.5, 1.0]])
    found = losses.feature_regression(guess(*torch.zeros(2, 1, 3), *pair)).item()
    # 0.5 * 0.5^2 within one, 2 - 0.5 beyond.
    assert found == pytest.approx((0.125 + 1.5) / 2)


def test_the_soft_cross_entropy_is_the_targets_expected_surprise() -> None:
    logits, target = pair(6, 5)
    by_hand = [
        -sum(p * math.log(q) for p, q in zip(softmax(t), softmax(d), strict=True))
        for d, t in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    found = losses.soft_cross_entropy(guess(logits, target)).item()
    assert found == pytest.approx(sum(by_hand) / len(by_hand))


def test_the_soft_cross_entropy_is_least_at_the_target_itself() -> None:
    _, target = pair(4, 7)
    logits = target.clone().requires_grad_()
    losses.soft_cross_entropy(guess(logits, target)).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(target))


def test_the_probability_distance_is_twice_the_chance_of_a_rejection() -> None:
    logits, target = pair(6, 5)
    rejected = []
    for d, t in zip(logits.tolist(), target.tolist(), strict=True):
        accepted = sum(min(p, q) for p, q in zip(softmax(t), softmax(d), strict=True))
        rejected.append(1 - accepted)
    found = losses.probability_distance(guess(logits, target)).item()
    assert found == pytest.approx(2 * sum(rejected) / len(rejected))


@pytest.mark.parametrize("top", [1, 2, 4, 9])
def test_list_mle_is_the_chance_of_drawing_the_targets_order(
    top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "TOP", top)
    logits, target = pair(5, 6, seed=3)
    total = 0.0
    for d, t in zip(logits.tolist(), target.tolist(), strict=True):
        order = sorted(range(6), key=lambda token: -t[token])[:top]
        for place, token in enumerate(order):
            rest = [math.exp(d[other]) for other in order[place:]]
            total -= math.log(math.exp(d[token]) / sum(rest))
    assert losses.list_mle(guess(logits, target)).item() == pytest.approx(total / 5)


def test_list_mle_prefers_the_targets_order() -> None:
    target = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    right = losses.list_mle(guess(target * 5, target))
    swapped = losses.list_mle(guess(target[:, [1, 0, 2, 3]] * 5, target))
    assert right < swapped


def test_the_cross_entropy_is_the_surprise_of_the_targets_choice() -> None:
    logits, target = pair(6, 5)
    by_hand = [
        -math.log(softmax(d)[max(range(5), key=t.__getitem__)])
        for d, t in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    assert losses.cross_entropy(guess(logits, target)).item() == pytest.approx(sum(by_hand) / 6)


@pytest.mark.parametrize("top", [1, 2, 4, 5, 9])
def test_the_divergence_over_the_best_is_that_of_those_alone(
    top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "TOP", top)
    logits, target = pair(6, 5)
    by_hand = 0.0
    for d, t in zip(logits.tolist(), target.tolist(), strict=True):
        best = sorted(range(5), key=lambda token: -t[token])[:top]
        true, found = softmax([t[i] for i in best]), softmax([d[i] for i in best])
        by_hand += sum(p * math.log(p / q) for p, q in zip(true, found, strict=True))
    found = losses.top_divergence(guess(logits, target)).item()
    assert found == pytest.approx(by_hand / 6, abs=1e-12)
    if top >= 5:
        assert found == pytest.approx(losses.divergence(guess(logits, target)).item())


def test_the_divergence_is_the_surprise_beyond_the_targets_own() -> None:
    logits, target = pair(6, 5)
    own = losses.soft_cross_entropy(guess(target, target))
    beyond = losses.soft_cross_entropy(guess(logits, target)) - own
    torch.testing.assert_close(losses.divergence(guess(logits, target)), beyond)


def test_the_stages_are_sums_of_their_parts_in_the_papers_shares() -> None:
    one = guess(*pair(4, 12, seed=1), *pair(4, 8))
    features, soft, ranking, distance = (
        losses.LOSSES[name](one)
        for name in ("features", "soft_cross_entropy", "ranking", "probability")
    )
    text = losses.weighted(losses.TEXT_STAGE)(one)
    assert text.item() == pytest.approx((features + 0.1 * (soft + 0.1 * ranking)).item())
    multimodal = losses.weighted(losses.MULTIMODAL_STAGE)(one)
    assert multimodal.item() == pytest.approx((10 * distance + 0.1 * ranking).item())


def test_the_multimodal_stage_leaves_features_free() -> None:
    (feature, true), (logits, target) = pair(3, 8), pair(3, 12)
    loss = losses.weighted(losses.MULTIMODAL_STAGE)
    first = loss(guess(logits, target, feature, true))
    assert torch.equal(first, loss(guess(logits, target, feature * 9, true)))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_stay_finite_where_the_target_is_sure(name: str) -> None:
    logits, feature = torch.randn(3, 6, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    target = torch.full((3, 6), -1e4).index_fill(1, torch.tensor([2]), 1e4)
    loss = losses.LOSSES[name](guess(logits, target, feature, torch.randn(3, 4)))
    loss.backward()
    assert loss.isfinite()
    for given in (logits, feature):
        assert given.grad is None or given.grad.isfinite().all()


@pytest.mark.parametrize("weights", [{"kk": 1.0}, {}, {"kl": 1.0, "mse": 2.0}])
def test_a_loss_that_there_is_not_is_named(weights: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="Known are features"):
        losses.weighted(weights)


def test_accuracy_is_the_share_of_equal_choices() -> None:
    logits = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 5.0], [3.0, 0.0]])
    target = torch.tensor([[0.0, 9.0], [0.0, 1.0], [4.0, 5.0], [1.0, 0.0]])
    assert losses.accuracy(guess(logits, target)) == 0.75


def test_a_truth_works_out_what_it_is_asked_for_once_and_shares_it() -> None:
    logits, _ = pair(6, 30)
    truth = losses.Truth(logits)
    assert truth.behind(0) is truth
    unknown = truth.behind(2)
    torch.testing.assert_close(unknown.probabilities, logits[2:].softmax(-1))
    assert truth.probabilities is truth.probabilities
    known = truth.behind(4)
    assert known.probabilities.data_ptr() == truth.probabilities[4:].data_ptr()
    assert torch.equal(known.best, logits[4:].argsort(-1, descending=True)[:, : losses.TOP])
    assert torch.equal(known.logits, logits[4:])
