"""Which of several trained adapters serves which kind of input: measured, and put together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vispec.adapters import Adapter, SelectorAdapter, build, settings_of
from vispec.drafts.sequential import SequentialDraft
from vispec.targets import Target
from vispec.training.draft import acceptance
from vispec.training.features import Sample


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
        samples: answered examples of every kind, by its name: a task, or a sort of images.

    Returns:
        the draft, and the acceptance lengths measured, `[kinds, adapters]`.
    """
    kinds, size = list(samples), draft.width
    measured = torch.zeros(len(kinds), len(adapters))
    for column, adapter in enumerate(adapters):
        trial = copy.deepcopy(draft)
        trial.adapter = copy.deepcopy(adapter)
        for row, kind in enumerate(kinds):
            found = acceptance(trial, target, list(samples[kind]))
            measured[row, column] = found["acceptance_length"]
    whole = copy.deepcopy(draft)
    settings = {"kind": "selector", "kinds": kinds, "parts": [settings_of(a) for a in adapters]}
    selector = build(settings, size)
    assert isinstance(selector, SelectorAdapter)
    for part, adapter in zip(selector.parts, adapters, strict=True):
        part.load_state_dict(adapter.state_dict())
    keys, labels = [], []
    for row, kind in enumerate(kinds):
        for sample in samples[kind]:
            found_keys = _keys(sample)
            keys.append(found_keys)
            labels += [row] * len(found_keys)
    selector.fit(torch.cat(keys), torch.tensor(labels), measured)
    reference = next(draft.parameters())
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
