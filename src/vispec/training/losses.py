"""How far a draft's guess is from the target, as the papers measure it.

Shapes: `m` positions, `d` hidden size, `V` vocabulary of the draft. Every loss is a scalar, a mean
over positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from vispec.errors import SettingsError

TOP = 10
"""How many of the target's tokens are ranked."""


@dataclass(frozen=True)
class Truth:
    """What a target thinks; whatever of it several losses ask for is worked out once.

    Attributes:
        logits: `[m, V]`.
    """

    logits: Tensor

    @cached_property
    def probabilities(self) -> Tensor:
        """`[m, V]`."""
        return self.logits.softmax(-1)

    @cached_property
    def best(self) -> Tensor:
        """`[m, TOP]` tokens, the likeliest first."""
        return self.logits.topk(min(TOP, self.logits.shape[-1]), -1).indices

    def behind(self, first: int) -> Truth:
        """From a position on, with what is known by now."""
        if not first:
            return self
        part = Truth(self.logits[first:])
        known = {k: v[first:] for k, v in vars(self).items() if k != "logits"}
        vars(part).update(known)
        return part


@dataclass(frozen=True)
class Guess:
    """What a draft guessed, and what it should have.

    Attributes:
        feature, true_feature: `[m, d]`.
        logits: `[m, V]`.
        truth: of as many positions and tokens.
    """

    feature: Tensor
    true_feature: Tensor
    logits: Tensor
    truth: Truth

    @cached_property
    def log_probabilities(self) -> Tensor:
        """`[m, V]`."""
        return self.logits.log_softmax(-1)


def feature_regression(guess: Guess) -> Tensor:
    """Smooth L1 between guessed and true features (EAGLE, arXiv 2401.15077, eq. 2)."""
    return F.smooth_l1_loss(guess.feature, guess.true_feature)


def cross_entropy(guess: Guess) -> Tensor:
    """Of the target's likeliest token."""
    return F.nll_loss(guess.log_probabilities, guess.truth.best[:, 0])


def soft_cross_entropy(guess: Guess) -> Tensor:
    """Cross-entropy of the draft against the target's whole distribution."""
    return -(guess.truth.probabilities * guess.log_probabilities).sum(-1).mean()


def divergence(guess: Guess) -> Tensor:
    """Kullback-Leibler divergence of the draft from the target."""
    return _divergence(guess.truth.logits, guess.logits)


def top_divergence(guess: Guess) -> Tensor:
    """The same over the target's `TOP` tokens alone, as if there were no others."""
    best = guess.truth.best
    return _divergence(guess.truth.logits.gather(-1, best), guess.logits.gather(-1, best))


def probability_distance(guess: Guess) -> Tensor:
    """L1 distance of the two distributions; half of it is the chance of a rejection."""
    return (guess.log_probabilities.exp() - guess.truth.probabilities).abs().sum(-1).mean()


def list_mle(guess: Guess) -> Tensor:
    """ListMLE over the target's `TOP` tokens (Xia et al., ICML 2008): rank them as it does.

    The negative log-likelihood of drawing the target's order from the draft's scores, one after
    another without replacement.
    """
    scores = guess.logits.gather(-1, guess.truth.best)
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
    if unknown or not any(weights.values()):
        said = f"there is no loss '{unknown[0]}'" if unknown else "no loss has a weight"
        raise SettingsError(said, f"Known are {', '.join(LOSSES)}.")
    parts = [(weight, LOSSES[name]) for name, weight in weights.items()]

    def total(guess: Guess) -> Tensor:
        return torch.stack([weight * loss(guess) for weight, loss in parts]).sum()

    return total


def accuracy(guess: Guess) -> Tensor:
    """Share of positions where both would say the same token; left on its device."""
    return (guess.logits.argmax(-1) == guess.truth.best[:, 0]).float().mean()


def _divergence(true_logits: Tensor, logits: Tensor) -> Tensor:
    true, found = true_logits.log_softmax(-1), logits.log_softmax(-1)
    return (true.exp() * (true - found)).sum(-1).mean()
