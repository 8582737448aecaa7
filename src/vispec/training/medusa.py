"""Training Medusa's heads on what the target said (arXiv 2401.10774, section 2.2).

Head `k` reads the last hidden state that the target said a token behind, and guesses the one `k`
places behind that.

Shapes: `a` positions of an answer, `k` heads, `d` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vispec.drafts.medusa import MedusaDraft
from vispec.targets import Target
from vispec.training.chains import walked
from vispec.training.draft import Beside, Stage, accuracies, block_rows, frozen, in_blocks
from vispec.training.features import Sample
from vispec.training.losses import Guess, Truth, accuracy, weighted


class MedusaStage(nn.Module):
    """Heads with what their training asks of them.

    Args:
        draft: what learns.
        target: whose LM head reads features; it does not learn.
        losses: weights of `vispec.training.losses.LOSSES`, summed over heads and positions.
        decay: weight of each head relative to the one before; the paper's is 0.8.
    """

    def __init__(
        self,
        draft: MedusaDraft,
        target: Target,
        losses: Mapping[str, float],
        *,
        decay: float = 0.8,
    ) -> None:
        super().__init__()
        self.draft, self.loss, self.decay = draft, weighted(losses), decay
        self._beside = Beside(target)

    weight = staticmethod(Stage.weight)

    def forward(self, samples: Sequence[Sample]) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over all answer positions, and the share of tokens guessed right."""
        own = [_answered(sample, self.draft) for sample in samples]
        hidden = torch.cat(own)
        # How many positions of its answer there are behind each.
        left = torch.cat([torch.arange(len(one) - 1, -1, -1, device=one.device) for one in own])
        width = self.draft.config.heads * self._beside.head.out_features
        rows = torch.arange(len(hidden), device=hidden.device)
        total, right = in_blocks(partial(self._block, hidden, left), rows, width)
        return total * (len(rows) / self.weight(samples)), accuracies(right)

    def _block(self, hidden: Tensor, left: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of some positions: their mean loss, and of each head tokens right and in all."""
        target, heads = self._beside.target, self.draft.config.heads
        guesses = self.draft(hidden[rows], self._beside.head).float()
        total, found = hidden.new_zeros(()), torch.zeros(2, heads, device=hidden.device)
        scale = sum(self.decay**k for k in range(heads))
        # The block and what is said behind it.
        first, last = int(rows[0]), int(rows[-1])
        with torch.no_grad():
            true = target.logits(hidden[first : last + heads + 1].to(target.dtype)).float()
        for k in range(1, heads + 1):
            deep = left[rows] >= k
            count = int(deep.sum())
            if not count:
                continue
            # What is said `k` places behind is what the target thinks `k` positions further on.
            wanted = true[rows[deep] - first + k]
            logits = guesses[deep, k - 1]
            nothing = logits.new_zeros(count, 1)
            share = self.decay ** (k - 1) / scale * count / len(rows)
            guess = Guess(nothing, nothing, logits, Truth(wanted))
            total = total + share * self.loss(guess)
            found[0, k - 1] = accuracy(guess) * count
            found[1, k - 1] = count
        return total, found


@torch.no_grad()
def medusa_acceptance(
    draft: MedusaDraft, target: Target, samples: Sequence[Sample], depth: int = 4
) -> dict[str, float]:
    """What greedy chains would have accepted of answers; see `vispec.training.chains`."""
    depth = min(depth, draft.config.heads)
    # The first chain begins at the answer's first token, whose hidden state is the prompt's last.
    begun = [_answered(sample, draft)[:-1] for sample in samples]
    tokens = pad_sequence([sample.tokens for sample in samples], True, -1)
    real = pad_sequence([torch.ones_like(sample.tokens) for sample in samples], True).bool()
    tokens, real = tokens.cpu(), real.cpu()
    right = torch.zeros(*tokens.shape, depth, dtype=torch.bool)
    head = frozen(target.head)
    for row, hidden in enumerate(begun):
        blocks = hidden.split(block_rows(draft.config.heads * head.out_features))
        guess = torch.cat([draft(block, head).argmax(-1) for block in blocks]).cpu()
        for k in range(min(depth, len(hidden))):
            said = tokens[row, k : len(hidden)]
            right[row, : len(said), k] = guess[: len(said), k] == said
    return walked(right, tokens, real)


def _answered(sample: Sample, draft: MedusaDraft) -> Tensor:
    """Hidden states from the prompt's last on, which the answer's first token was said behind."""
    return sample.hidden[sample.answer_start - 1 :].to(next(draft.parameters()).device, draft.dtype)
