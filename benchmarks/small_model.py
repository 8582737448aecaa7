"""A small sibling of a target, which learns from what the target said and from how sure it was.

For drafts that are whole models, and for adapters that two targets share. It begins with a few of
the target's decoder layers and has its tokenizer and vision tower. What it is shown are the
target's own image tokens, through a matrix that it learns, so no tower runs while it does; at the
end the matrix becomes part of its projector.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from vispec.targets import Target
from vispec.training.draft import Batches, Beside, split
from vispec.training.features import Sample
from vispec.training.trainer import Settings, Trainer


@dataclass(frozen=True)
class Small:
    """Its shape.

    Attributes:
        sees: whether it is shown pictures; else it is a language model that knows nothing of them.
    """

    sees: bool = True
    layers: int = 4


class Sibling(nn.Module):
    """A small decoder, and what its own view of the target's image tokens is."""

    def __init__(self, target: Target, shape: Small) -> None:
        super().__init__()
        config: Any = copy.deepcopy(target.text_config)
        depth = config.num_hidden_layers
        config.num_hidden_layers, config.layer_types = shape.layers, None
        self.decoder = LlamaForCausalLM(config)
        theirs: Any = target.model
        self.decoder.lm_head.load_state_dict(theirs.lm_head.state_dict())
        own, other = self.decoder.model, theirs.model.language_model
        own.embed_tokens.load_state_dict(other.embed_tokens.state_dict())
        own.norm.load_state_dict(other.norm.state_dict())
        for place, layer in enumerate(own.layers):
            # The first and the last, and some between them.
            nearest = round(place * (depth - 1) / max(1, shape.layers - 1))
            layer.load_state_dict(other.layers[nearest].state_dict())
        size = target.hidden_size
        self.shown = nn.Linear(size, size, bias=False) if shape.sees else None
        if self.shown is not None:
            nn.init.eye_(self.shown.weight)
        self._beside = Beside(target)

    @staticmethod
    def weight(samples: Sequence[Sample]) -> int:
        """How many tokens the mean loss of a batch is taken over."""
        return sum(len(sample.tokens) + 1 for sample in samples)

    def forward(self, samples: Sequence[Sample]) -> tuple[Tensor, dict[str, float]]:
        """Divergence from the target's probabilities, and the share of its first choices."""
        rows, at = [], []
        for sample in samples:
            shown = sample.image_index >= 0
            row = self.decoder.model.embed_tokens(sample.ids)
            if self.shown is None:
                row = row[~shown]
            else:
                row = torch.where(shown[:, None], self.shown(sample.embeddings).to(row), row)
            rows.append(row)
            # From the prompt's last position on.
            at.append(range(len(row) - len(sample.tokens) - 1, len(row)))
        # Padding comes last, where a causal mask hides it from every real row.
        out = self.decoder.model(inputs_embeds=pad_sequence(rows, True), use_cache=False)
        hidden = out.last_hidden_state
        logits = self.decoder.lm_head(
            torch.cat([hidden[i, place.start : place.stop] for i, place in enumerate(at)])
        ).float()
        with torch.no_grad():
            target, head = self._beside.target, self._beside.head
            true = torch.cat([s.hidden[-len(s.tokens) - 1 :] for s in samples])
            true_logits = functional.linear(true.to(target.dtype), head.weight, head.bias).float()
        loss = functional.kl_div(
            logits.log_softmax(-1), true_logits.log_softmax(-1), log_target=True, reduction="none"
        )
        same = (logits.argmax(-1) == true_logits.argmax(-1)).float().mean()
        return loss.sum(-1).mean(), {"accuracy": float(same)}


def train_small(
    target: Target,
    shape: Small,
    data: Sequence[Sequence[Sample]],
    heldout: Sequence[Sample],
    folder: Path,
    minutes: float,
    *,
    seed: int = 0,
) -> None:
    """Train it for some minutes and write it to `folder/draft`; goes on where it was."""
    torch.manual_seed(seed)
    sibling = Sibling(target, shape).train()
    parts: Any = list(data)
    whole: Any = ConcatDataset(parts)

    def judged(_: nn.Module) -> dict[str, float]:
        found = [sibling(heldout[i : i + 16]) for i in range(0, len(heldout), 16)]
        return {
            "heldout_divergence": sum(float(loss) for loss, _ in found) / len(found),
            "heldout_accuracy": sum(n["accuracy"] for _, n in found) / len(found),
        }

    batches = Batches(whole, 16, seed)
    Trainer(
        sibling,
        batches,
        lambda model, samples: model(samples),
        Settings(
            folder / "stages" / "whole",
            1e-3,
            budget_s=minutes * 60,
            evaluate_s=minutes * 10,
            clock=time.process_time,
        ),
        evaluate=judged,
        split=split,
        load=batches.load,
        weigh=Sibling.weight,
    ).run()
    write(target, sibling, folder / "draft.tmp")
    (folder / "draft.tmp").rename(folder / "draft")


def write(target: Target, sibling: Sibling, folder: Path) -> None:
    """As a model that Hugging Face's classes load, beside its processor."""
    model: Any = sibling.decoder
    theirs: Any = target.model
    if sibling.shown is not None:
        config = copy.deepcopy(theirs.config)
        config.text_config = sibling.decoder.config
        model = LlavaForConditionalGeneration(config)
        own, other = model.model, theirs.model
        own.vision_tower.load_state_dict(other.vision_tower.state_dict())
        own.language_model.load_state_dict(sibling.decoder.model.state_dict())
        model.lm_head.load_state_dict(sibling.decoder.lm_head.state_dict())
        first, last = other.multi_modal_projector.linear_1, other.multi_modal_projector.linear_2
        into = sibling.shown.weight.detach()
        with torch.no_grad():
            own.multi_modal_projector.linear_1.load_state_dict(first.state_dict())
            own.multi_modal_projector.linear_2.weight.copy_(into @ last.weight)
            own.multi_modal_projector.linear_2.bias.copy_(into @ last.bias)
    model.generation_config = copy.deepcopy(theirs.generation_config)
    model.to(torch.bfloat16).save_pretrained(folder)
    (target.tokenizer if sibling.shown is None else target.processor).save_pretrained(folder)
