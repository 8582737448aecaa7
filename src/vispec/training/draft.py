"""Training a decoder draft on what the target said.

Row `p` of the draft pairs the target's feature at position `p` with the token at `p + 1` and
guesses the feature at `p + 1`. *Self-fed* passes put earlier guesses in the features' place, as
drafting does, so the draft learns to go on from its own guesses and cannot lean on what a true
feature knows of the image (ViSpec, arXiv 2509.15235, section 3.4).

Shapes: `b` samples, `t` positions, `n` rows, `d` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vispec.drafts.eagle import EagleDraft
from vispec.drafts.sequential import Rows
from vispec.training.features import Sample
from vispec.training.losses import accuracy

StageLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`(guess [m, d], feature [m, d], logits [m, V], target_logits [m, V]) -> scalar`."""


def batches(
    samples: Sequence[Sample], size: int, seed: int, positions: int = 8192
) -> Callable[[int], list[Sample]]:
    """Batches that depend on the step alone: every epoch a new order, its samples each once.

    Args:
        samples: the data.
        size: samples a batch, at most.
        seed: of the order.
        positions: longest padded batch; longer ones lose their last samples.
    """
    steps = max(1, -(-len(samples) // size))
    orders: dict[int, list[int]] = {}

    def batch(step: int) -> list[Sample]:
        epoch, place = divmod(step, steps)
        if epoch not in orders:
            orders.clear()
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            orders[epoch] = torch.randperm(len(samples), generator=generator).tolist()
        chosen = [samples[i] for i in orders[epoch][place * size : (place + 1) * size]]
        while len(chosen) > 1 and len(chosen) * max(len(s.features) for s in chosen) > positions:
            chosen.pop()
        return chosen

    return batch


def stage(
    head: nn.Linear, loss: StageLoss, *, self_fed: int = 0, noise: float = 0.0
) -> Callable[[nn.Module, list[Sample]], tuple[Tensor, dict[str, float]]]:
    """The loss function of one training stage, for `vispec.training.trainer.Trainer`.

    Args:
        head: the target's LM head; it does not learn.
        loss: what is minimised at every answer position of every pass.
        self_fed: passes on the draft's own guesses after the first on true features.
        noise: uniform noise on true features, as a share of their standard deviation.
    """

    def compute(model: nn.Module, samples: list[Sample]) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, EagleDraft)
        dtype = model.dtype
        true = [sample.features.to(dtype) for sample in samples]
        fed = [f + noise * f.std() * 2 * (torch.rand_like(f) - 0.5) for f in true]
        with torch.no_grad():
            wanted = torch.cat([f[s.answer_start :] for f, s in zip(true, samples, strict=True)])
            target_logits = head(wanted.to(head.weight.dtype)).float()
        total: Tensor | float = 0.0
        numbers: dict[str, float] = {}
        for turn in range(self_fed + 1):
            guesses = _guess(model, samples, fed)
            guess = torch.cat(guesses)
            logits = (guess @ head.weight.detach().to(guess.dtype).T).float()
            total = total + loss(guess.float(), wanted.float(), logits, target_logits)
            numbers[f"accuracy_{turn + 1}"] = accuracy(logits, target_logits)
            fed = [
                torch.cat([f[: s.answer_start], g.to(dtype)])
                for f, g, s in zip(fed, guesses, samples, strict=True)
            ]
        assert isinstance(total, Tensor)
        return total / (self_fed + 1), numbers

    return compute


def _guess(draft: EagleDraft, samples: list[Sample], features: list[Tensor]) -> list[Tensor]:
    """Guessed features `[answer, d]` at each sample's answer positions, given those before."""
    rows: list[Rows] = []
    for sample, feature in zip(samples, features, strict=True):
        embeddings = sample.embeddings.to(feature.dtype)
        rows.append(
            draft.read(embeddings[:-1], feature[:-1], sample.image_index[:-1], embeddings[-1])
        )
    hidden = pad_sequence([r.hidden for r in rows], batch_first=True)
    position = pad_sequence([r.position for r in rows], batch_first=True)
    # Padding comes last, where a causal mask hides it from every real row.
    out = draft(hidden, position)
    guesses = []
    for i, (sample, r) in enumerate(zip(samples, rows, strict=True)):
        count = len(sample.features) - sample.answer_start
        guesses.append(out[i, len(r.position) - count : len(r.position)])
    return guesses
