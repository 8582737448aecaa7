"""How far a draft's guess is from the target, as the papers measure it.

Shapes: `m` positions, `d` hidden size, `V` vocabulary. Every loss is a scalar, a mean over
positions.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def feature_regression(guess: Tensor, feature: Tensor) -> Tensor:
    """Smooth L1 between guessed and true features `[m, d]` (EAGLE, arXiv 2401.15077, eq. 2)."""
    return F.smooth_l1_loss(guess, feature)


def soft_cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Cross-entropy `[m, V]` of the draft against the target's whole distribution."""
    return -(target_logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def probability_distance(logits: Tensor, target_logits: Tensor) -> Tensor:
    """L1 distance of the two distributions `[m, V]`; half of it is the chance of a rejection."""
    return (logits.softmax(-1) - target_logits.softmax(-1)).abs().sum(-1).mean()


def list_mle(logits: Tensor, target_logits: Tensor, top: int = 10) -> Tensor:
    """ListMLE over the target's `top` tokens (Xia et al., ICML 2008): rank them as it does.

    The negative log-likelihood of drawing the target's order from the draft's scores, one after
    another without replacement.
    """
    best = target_logits.topk(min(top, logits.shape[-1]), -1).indices
    scores = logits.gather(-1, best)
    rest = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return -(scores - rest).sum(-1).mean()


def text_stage(guess: Tensor, feature: Tensor, logits: Tensor, target_logits: Tensor) -> Tensor:
    """ViSpec's first stage: features, and a little of the distribution and its ranking."""
    ranked = soft_cross_entropy(logits, target_logits) + 0.1 * list_mle(logits, target_logits)
    return feature_regression(guess, feature) + 0.1 * ranked


def multimodal_stage(
    guess: Tensor, feature: Tensor, logits: Tensor, target_logits: Tensor
) -> Tensor:
    """ViSpec's second stage: probabilities and ranking only, so that features may differ."""
    return 10 * probability_distance(logits, target_logits) + 0.1 * list_mle(logits, target_logits)


def accuracy(logits: Tensor, target_logits: Tensor) -> float:
    """Share of positions where both would say the same token."""
    return (logits.argmax(-1) == target_logits.argmax(-1)).float().mean().item()


__all__ = [
    "accuracy",
    "feature_regression",
    "list_mle",
    "multimodal_stage",
    "probability_distance",
    "soft_cross_entropy",
    "text_stage",
]
