"""How far a draft's guess is from the target, as the papers measure it.

Shapes: `m` positions, `d` hidden size, `V` vocabulary of the draft. Every loss is a scalar, a mean
over positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vispec.errors import SettingsError


@dataclass(frozen=True)
class Guess:
    """What a draft guessed, and what it should have.

    Attributes:
        feature, true_feature: `[m, d]`.
        logits, true_logits: `[m, V]`.
    """

    feature: Tensor
    true_feature: Tensor
    logits: Tensor
    true_logits: Tensor


def feature_regression(guess: Guess) -> Tensor:
    """Smooth L1 between guessed and true features (EAGLE, arXiv 2401.15077, eq. 2)."""
    return F.smooth_l1_loss(guess.feature, guess.true_feature)


def cross_entropy(guess: Guess) -> Tensor:
    """Of the target's likeliest token."""
    return F.cross_entropy(guess.logits, guess.true_logits.argmax(-1))


def soft_cross_entropy(guess: Guess) -> Tensor:
    """Cross-entropy of the draft against the target's whole distribution."""
    return -(guess.true_logits.softmax(-1) * guess.logits.log_softmax(-1)).sum(-1).mean()


def divergence(guess: Guess) -> Tensor:
    """Kullback-Leibler divergence of the draft from the target."""
    return _divergence(guess.true_logits, guess.logits)


def top_divergence(guess: Guess, top: int = 10) -> Tensor:
    """The same over the target's `top` tokens alone, as if there were no others."""
    best = guess.true_logits.topk(min(top, guess.logits.shape[-1]), -1)
    return _divergence(best.values, guess.logits.gather(-1, best.indices))


def probability_distance(guess: Guess) -> Tensor:
    """L1 distance of the two distributions; half of it is the chance of a rejection."""
    return (guess.logits.softmax(-1) - guess.true_logits.softmax(-1)).abs().sum(-1).mean()


def list_mle(guess: Guess, top: int = 10) -> Tensor:
    """ListMLE over the target's `top` tokens (Xia et al., ICML 2008): rank them as it does.

    The negative log-likelihood of drawing the target's order from the draft's scores, one after
    another without replacement.
    """
    best = guess.true_logits.topk(min(top, guess.logits.shape[-1]), -1).indices
    scores = guess.logits.gather(-1, best)
    rest = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return -(scores - rest).sum(-1).mean()


LOSSES: dict[str, Callable[[Guess], Tensor]] = {
    "features": feature_regression,
    "cross_entropy": cross_entropy,
    "soft_cross_entropy": soft_cross_entropy,
    "kl": divergence,
    "top_kl": top_divergence,
    "probability": probability_distance,
    "ranking": list_mle,
}
"""By the names that recipes give them."""

TEXT_STAGE = {"features": 1.0, "soft_cross_entropy": 0.1, "ranking": 0.01}
"""ViSpec's first stage: features, and a little of the distribution and its ranking."""
MULTIMODAL_STAGE = {"probability": 10.0, "ranking": 0.1}
"""ViSpec's second stage: probabilities and ranking only, so that features may differ."""


def weighted(weights: Mapping[str, float]) -> Callable[[Guess], Tensor]:
    """The sum of several of `LOSSES`, each times its weight.

    Raises:
        SettingsError: for a loss that there is not.
    """
    unknown = [name for name in weights if name not in LOSSES]
    if unknown or not weights:
        said = f"there is no loss '{unknown[0]}'" if unknown else "no loss is given"
        raise SettingsError(said, f"Known are {', '.join(LOSSES)}.")
    parts = [(weight, LOSSES[name]) for name, weight in weights.items()]

    def total(guess: Guess) -> Tensor:
        return torch.stack([weight * loss(guess) for weight, loss in parts]).sum()

    return total


def accuracy(logits: Tensor, true_logits: Tensor) -> Tensor:
    """Share of positions where both would say the same token; left on its device."""
    return (logits.argmax(-1) == true_logits.argmax(-1)).float().mean()


def _divergence(true_logits: Tensor, logits: Tensor) -> Tensor:
    true, found = true_logits.log_softmax(-1), logits.log_softmax(-1)
    return (true.exp() * (true - found)).sum(-1).mean()
