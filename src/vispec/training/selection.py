"""Which of several trained adapters serves which kind of input: measured, and put together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vispec.adapters import Adapter, SelectorAdapter, build, settings_of
from vispec.decoding.engine import Engine
from vispec.drafts.compression import compression_of
from vispec.drafts.sequential import SequentialDraft
from vispec.errors import SettingsError
from vispec.runs import claim
from vispec.targets import Target
from vispec.training.distill import Question, digest, distill
from vispec.training.features import Online, Sample, at_hand
from vispec.training.pipeline import identity
from vispec.training.stages import judged

POSITIONS = 8192
"""That a draft reads at once while it is measured, padding among them."""


def select_drafts(
    drafts: Mapping[str, Any],
    engine: Engine,
    kinds: Mapping[str, Sequence[Question]],
    folder: Path,
    *,
    max_new_tokens: int,
) -> tuple[SequentialDraft, Tensor]:
    """One draft of several that differ in their adapters; see `select`.

    Args:
        drafts: by name, each trained behind an adapter of its own with the rest frozen.
        engine: whose target answers.
        kinds: questions of every kind, by its name.
        folder: of the answers, `answers/<kind>/` for each; goes on with what is there.
        max_new_tokens: longest answer.

    Returns:
        the draft, and the acceptance lengths measured, `[kinds, drafts]`.

    Raises:
        SettingsError: for drafts that cannot become one, or questions without images.
        VispecError: if the folder has answers of another target, or to other questions.
    """
    refuse_other_bodies(drafts)
    target, first = engine.target, next(iter(drafts.values()))
    facts = {
        **identity(target.name),
        "kinds": {kind: digest(asked, max_new_tokens) for kind, asked in kinds.items()},
    }
    claim(folder, facts)
    samples: dict[str, list[Sample]] = {}
    for kind, asked in kinds.items():
        own = folder / "answers" / kind
        answers = distill(engine, asked, own, max_new_tokens=max_new_tokens)
        known = [question for question in asked if question.key in answers]
        seen = Online(target, known, answers, first.feature_layers(target))
        samples[kind] = [at_hand(sample) for sample in seen]
    return select(first, [draft.adapter for draft in drafts.values()], target, samples)


def refuse_other_bodies(drafts: Mapping[str, Any]) -> None:
    """Raise `SettingsError` for drafts that differ in more than their adapters."""
    if len(drafts) < 2:
        raise SettingsError("there is one draft, and nothing to select", "Give two or more.")
    for name, draft in drafts.items():
        if not isinstance(draft, SequentialDraft) or draft.adapter is None:
            raise SettingsError(f"'{name}' has no adapter", "Give drafts with one each.")
        if draft.embed_tokens is not None:
            raise SettingsError(
                f"'{name}' has a token embedding of its own", "Kinds are told by the target's."
            )
        if compression_of(draft) is not None:
            raise SettingsError(f"'{name}' is compressed", "Give the draft that it was made of.")
    first, *others = drafts
    body = _body(drafts[first])
    for name in others:
        other = _body(drafts[name])
        if body.keys() != other.keys() or not all(torch.equal(body[k], other[k]) for k in body):
            raise SettingsError(
                f"'{first}' and '{name}' differ in more than their adapters",
                "Train adapters behind one draft that has none: --init, in stages with train ="
                ' "adapter". Those with a global vector change the draft, too, and are not for'
                " this.",
            )
    selector_of([draft.adapter for draft in drafts.values()], ["any"], drafts[first].width)


def _body(draft: Any) -> dict[str, Tensor]:
    """The weights of a draft without its adapter."""
    return {k: v for k, v in draft.state_dict().items() if not k.startswith("adapter.")}


def selector_of(adapters: Sequence[Adapter], kinds: Sequence[str], width: int) -> SelectorAdapter:
    """Adapters as the parts of one that chooses, which knows nothing yet.

    Raises:
        SettingsError: for adapters that cannot be parts.
    """
    parts = [settings_of(adapter) for adapter in adapters]
    made = build({"kind": "selector", "kinds": list(kinds), "parts": parts}, width)
    assert isinstance(made, SelectorAdapter)
    for part, adapter in zip(made.parts, adapters, strict=True):
        part.load_state_dict(adapter.state_dict())
    return made


@torch.no_grad()
def select(
    draft: SequentialDraft,
    adapters: Sequence[Adapter],
    target: Target,
    samples: Mapping[str, Sequence[Sample]],
) -> tuple[SequentialDraft, Tensor]:
    """A draft that takes, for every image, the adapter that serves its kind best.

    Args:
        draft: whose decoder all the adapters were trained with.
        adapters: trained; all with a global vector, or all without.
        samples: answered examples of every kind, by its name, in main memory: a task, or a sort of
            images.

    Returns:
        the draft, and the acceptance lengths measured, `[kinds, adapters]`.

    Raises:
        SettingsError: for a kind of which no sample has an image.
    """
    selector = selector_of(adapters, list(samples), draft.width)
    keys = []
    for kind, examples in samples.items():
        keys.append(torch.cat([torch.zeros(0, 2 * draft.width), *map(_keys, examples)]))
        if not len(keys[-1]):
            raise SettingsError(
                f"there is no image among the samples of '{kind}'", "Kinds are of images."
            )
    measured = torch.zeros(len(samples), len(adapters))
    for column, adapter in enumerate(adapters):
        trial = copy.deepcopy(draft)
        trial.adapter = copy.deepcopy(adapter)
        for row, examples in enumerate(samples.values()):
            found = judged(trial, target, examples, POSITIONS)
            measured[row, column] = found["acceptance_length"]
    labels = torch.arange(len(keys)).repeat_interleave(torch.tensor([len(own) for own in keys]))
    selector.fit(torch.cat(keys), labels, measured)
    reference = next(draft.parameters())
    whole = copy.deepcopy(draft)
    whole.adapter = selector.to(device=reference.device, dtype=reference.dtype).eval()
    return whole, measured


def _keys(sample: Sample) -> Tensor:
    """Of every image of a sample; see `SelectorAdapter.key`."""
    start, index = sample.answer_start, sample.image_index
    asked = sample.embeddings[:start][index[:start] < 0].float().mean(0)[None]
    # A draft is not shown what stands at the very first position.
    images = [
        sample.embeddings[1:][index[1:] == image].float() for image in range(int(index.max()) + 1)
    ]
    found = [SelectorAdapter.key(one[None], None, asked) for one in images if len(one)]
    return torch.cat(found) if found else torch.zeros(0, 2 * sample.embeddings.shape[1])
