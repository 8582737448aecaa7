"""What the target's decoder saw and made of its own answers, kept for many epochs of a draft."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vispec.decoding.tree import Tree
from vispec.targets.base import Target
from vispec.training.distill import Answer, Question

SHARD = 128


@dataclass(frozen=True)
class Sample:
    """One conversation.

    Attributes:
        features: `[t, d]` last hidden states.
        embeddings: `[t, d]` the decoder's inputs, images in them.
        image_index: `[t]`, -1 for text.
        answer_start: position of the answer's first token.
    """

    features: Tensor
    embeddings: Tensor
    image_index: Tensor
    answer_start: int


@torch.inference_mode()
def look(target: Target, question: Question, answer: Answer) -> Sample:
    """Run the target over a question and, as it was said, its answer.

    An end-of-sequence token is left out: nothing is drafted behind it.
    """
    images = [question.image()] if question.image is not None else []
    prompt = target.encode(question.prompt, images)
    ids = answer.token_ids
    if len(ids) > 1 and ids[-1] in target.eos_token_ids:
        ids = ids[:-1]
    said = torch.tensor([ids], device=target.device)
    n = said.shape[1]
    place = torch.arange(n, device=target.device)[None]
    cache = target.new_cache(1, len(prompt) + n)
    seen = target.prefill(prompt, cache, 0)
    then = target.verify(Tree(said, place - 1, place, n - 1, torch.zeros(1, n)), cache)
    return Sample(
        torch.cat([seen.features, then.features[0]]),
        torch.cat([seen.embeddings, target.embedding(said)[0]]),
        torch.cat([seen.image_index, torch.full_like(said[0], -1)]),
        len(prompt),
    )


def collect(
    target: Target,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    folder: Path,
) -> list[Sample]:
    """Features of every answered question, in bf16, a shard of samples a file.

    Shards already in `folder` are read instead of made. Two tensors of the hidden size a position
    are kept, `4 d` bytes: 768 for a width of 192.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    begun = time.monotonic()
    for start in range(0, len(questions), SHARD):
        path = folder / f"features-{start:06d}.safetensors"
        group = questions[start : start + SHARD]
        if not path.exists():
            made = [look(target, q, answers[q.key]) for q in group]
            _write(made, path)
            print(
                f"features of {start + len(group)}/{len(questions)} answers,"
                f" {time.monotonic() - begun:.0f} s",
                flush=True,
            )
        samples += _read(path)
    return samples


def _write(samples: Sequence[Sample], path: Path) -> None:
    tensors = {}
    for i, sample in enumerate(samples):
        tensors[f"{i}.features"] = sample.features.to(torch.bfloat16).contiguous()
        tensors[f"{i}.embeddings"] = sample.embeddings.to(torch.bfloat16).contiguous()
        tensors[f"{i}.image_index"] = sample.image_index.to(torch.int16)
        tensors[f"{i}.answer_start"] = torch.tensor(sample.answer_start)
    save_file(tensors, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _read(path: Path) -> list[Sample]:
    tensors = load_file(path)
    return [
        Sample(
            tensors[f"{i}.features"],
            tensors[f"{i}.embeddings"],
            tensors[f"{i}.image_index"].long(),
            int(tensors[f"{i}.answer_start"]),
        )
        for i in range(sum(name.endswith(".answer_start") for name in tensors))
    ]
