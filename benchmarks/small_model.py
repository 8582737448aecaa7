"""Small models that learn from what a target said: for drafts that are whole models.

A sibling begins with a few of the target's decoder layers, has its tokenizer and vision tower, and
learns from how sure the target was. What it is shown are the target's own image tokens, through a
matrix that it learns, so no tower runs while it does; at the end the matrix becomes part of its
projector. A stranger has a vocabulary of its own, sees nothing, and learns from the text alone.
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
from vispec.writing import replacing


@dataclass(frozen=True)
class Small:
    """Its shape.

    Attributes:
        sees: whether it is shown pictures; else it is a language model that knows nothing of them.
        vocabulary: how many tokens it has of its own, where it has not the target's.
    """

    sees: bool = True
    layers: int = 4
    vocabulary: int = 0


def smaller(target: Target, layers: int, vocabulary: int) -> LlamaForCausalLM:
    """A decoder of the first and the last layer of a target's, and some between them."""
    config: Any = copy.deepcopy(target.text_config)
    depth = config.num_hidden_layers
    config.num_hidden_layers, config.layer_types = layers, None
    config.vocab_size = vocabulary
    decoder = LlamaForCausalLM(config)
    theirs: Any = target.model.model.language_model
    decoder.model.norm.load_state_dict(theirs.norm.state_dict())
    for place, layer in enumerate(decoder.model.layers):
        nearest = round(place * (depth - 1) / max(1, layers - 1))
        layer.load_state_dict(theirs.layers[nearest].state_dict())
    return decoder


class Sibling(nn.Module):
    """A small decoder, and what its own view of the target's image tokens is."""

    def __init__(self, target: Target, shape: Small) -> None:
        super().__init__()
        self.decoder = smaller(target, shape.layers, target.vocab_size)
        theirs: Any = target.model
        self.decoder.lm_head.load_state_dict(theirs.lm_head.state_dict())
        words = theirs.model.language_model.embed_tokens
        self.decoder.model.embed_tokens.load_state_dict(words.state_dict())
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


class Stranger(nn.Module):
    """A small decoder with a tokenizer of its own, made from what the target said."""

    def __init__(self, target: Target, shape: Small, learnt: Sequence[Sample]) -> None:
        super().__init__()
        self.theirs = target.tokenizer
        texts = (self.text(learnt[i]) for i in range(min(len(learnt), 4000)))
        self.tokenizer = self.theirs.train_new_from_iterator(texts, shape.vocabulary)
        self.decoder = smaller(target, shape.layers, len(self.tokenizer))
        self._known: dict[str, Tensor] = {}

    def text(self, sample: Sample) -> str:
        """As a draft is given it: without pictures."""
        # The last token, where there is one, is said behind the last position.
        ids = torch.cat([sample.ids[sample.image_index < 0], sample.tokens[-1:]])
        said: str = self.theirs.decode(ids[ids >= 0].tolist(), skip_special_tokens=False)
        return said

    def ids(self, sample: Sample) -> Tensor:
        if sample.key not in self._known:
            self._known[sample.key] = torch.tensor(self.tokenizer.encode(self.text(sample)))
        return self._known[sample.key]

    def weight(self, samples: Sequence[Sample]) -> int:
        """How many tokens the mean loss of a batch is taken over."""
        return sum(len(self.ids(sample)) - 1 for sample in samples)

    def forward(self, samples: Sequence[Sample]) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the text, and the share of tokens foreseen."""
        ids = pad_sequence([self.ids(sample) for sample in samples], True, -1)
        logits = self.decoder(ids[:, :-1].clamp(min=0), use_cache=False).logits
        real = ids[:, 1:] >= 0
        found, true = logits[real].float(), ids[:, 1:][real]
        same = (found.argmax(-1) == true).float().mean()
        return functional.cross_entropy(found, true), {"accuracy": float(same)}


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
    parts: Any = list(data)
    whole: Any = ConcatDataset(parts)
    small = Stranger(target, shape, whole) if shape.vocabulary else Sibling(target, shape)

    def judged(_: nn.Module) -> dict[str, float]:
        found = [small(heldout[i : i + 16]) for i in range(0, len(heldout), 16)]
        return {
            "heldout_loss": sum(float(loss) for loss, _ in found) / len(found),
            "heldout_accuracy": sum(n["accuracy"] for _, n in found) / len(found),
        }

    batches = Batches(whole, 16, seed)
    Trainer(
        small.train(),
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
        weigh=small.weight,
    ).run()
    with replacing(folder / "draft") as fresh:
        write(target, small, fresh)


def write(target: Target, small: Sibling | Stranger, folder: Path) -> None:
    """As a model that Hugging Face's classes load, beside its processor."""
    model: Any = small.decoder
    theirs: Any = target.model
    processor = target.tokenizer if isinstance(small, Sibling) else small.tokenizer
    if isinstance(small, Sibling) and small.shown is not None:
        processor = target.processor
        config = copy.deepcopy(theirs.config)
        config.text_config = small.decoder.config
        model = LlavaForConditionalGeneration(config)
        own, other = model.model, theirs.model
        own.vision_tower.load_state_dict(other.vision_tower.state_dict())
        own.language_model.load_state_dict(small.decoder.model.state_dict())
        model.lm_head.load_state_dict(small.decoder.lm_head.state_dict())
        first, last = other.multi_modal_projector.linear_1, other.multi_modal_projector.linear_2
        into = small.shown.weight.detach()
        with torch.no_grad():
            own.multi_modal_projector.linear_1.load_state_dict(first.state_dict())
            own.multi_modal_projector.linear_2.weight.copy_(into @ last.weight)
            own.multi_modal_projector.linear_2.bias.copy_(into @ last.bias)
    model.generation_config = copy.deepcopy(theirs.generation_config)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
