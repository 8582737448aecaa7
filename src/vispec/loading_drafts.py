"""From a name to a draft that fits its target."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch

from vispec.checkpoints.files import locate, read_config, read_tensors
from vispec.checkpoints.formats import advised_tree
from vispec.checkpoints.registry import plan_at
from vispec.decoding.tree import TreeShape
from vispec.drafts.base import Draft, numbers_of
from vispec.drafts.hybrid import HybridDraft
from vispec.drafts.language_model import LanguageModelDraft, same_vocabulary
from vispec.drafts.lookup import LookupDraft
from vispec.drafts.universal import UniversalDraft
from vispec.errors import CheckpointError
from vispec.loading_targets import Name, load_target
from vispec.targets import FAMILIES, Target

LOOKUP = "lookup"


def load_draft(
    draft: Name, target: Target, *, pickled: bool = False
) -> tuple[Draft, TreeShape | None]:
    """Load a draft for a target, and the tree its checkpoint recommends.

    Args:
        draft: a folder or hub name, of a draft or of a whole model; `"lookup"`; or a name and
            `"+lookup"` behind it.
        pickled: read pickled weights where there are no others; they can run code when opened.

    Raises:
        CheckpointError: if the folder holds no draft of a known format, or one that vispec can read
            but not draft with.
        DraftMismatchError: if it was trained for another target.
    """
    label = os.fspath(draft)
    if label == LOOKUP:
        return LookupDraft(), None
    if label.endswith(f"+{LOOKUP}"):
        other, advice = load_draft(label.removesuffix(f"+{LOOKUP}"), target, pickled=pickled)
        return HybridDraft(other), advice
    name = locate(draft, "draft")
    found = plan_at(name, label, pickled=pickled)
    if found is None and read_config(name).get("model_type") in FAMILIES:
        return model_draft(name, target, pickled=pickled), None
    if found is None:
        raise CheckpointError(
            label,
            "is neither a draft of a known format nor a model of a known family",
            fix="Known are the formats of ViSpec, EAGLE, EAGLE-3, Medusa, DFlash, DSpark and"
            " speculators.",
        )
    network: Any = found.network
    # Geometry first: a draft for another model should be told so, not that tensors differ.
    network.check(target)
    if not isinstance(network, Draft):
        raise CheckpointError(
            label,
            f"is a block draft ({found.form}), which this version can read but not draft with",
            fix="Pass a ViSpec, EAGLE or EAGLE-3 draft, or draft=None for plain decoding.",
        )
    loaded: Any = found.load(label, read_tensors(name, pickled=pickled))
    share_embedding(loaded, target)
    loaded.trained_for = found.facts.get("target")
    return loaded.to(device=target.device, dtype=target.dtype), advised_tree(found, label)


def model_draft(name: Name, target: Target, *, pickled: bool = False) -> LanguageModelDraft:
    """A whole model as a draft; across vocabularies where its own is another.

    Raises:
        DraftMismatchError: if it cannot draft for the target.
    """
    if os.path.realpath(name) == os.path.realpath(target.name) or os.fspath(name) == target.name:
        raise CheckpointError(
            os.fspath(name),
            "is the target itself, which drafts no faster than it speaks",
            fix="Give a draft, or a smaller model; draft=None decodes plainly.",
        )
    model = load_target(name, dtype=target.dtype, device=target.device, pickled=pickled)
    draft: LanguageModelDraft
    if not same_vocabulary(model, target):
        draft = UniversalDraft(model)
    else:
        alike = model.model_type == target.model_type
        draft = LanguageModelDraft(model, sees=None if alike else False)
    draft.check(target)
    return draft


def placed(draft: Draft | None, target: Target) -> Draft | None:
    """A draft in the target's numbers and on its device: itself, or a copy."""
    if not isinstance(draft, torch.nn.Module) or next(draft.parameters(), None) is None:
        return draft
    own = numbers_of(draft)
    if own.dtype == target.dtype and own.device == target.device:
        return draft
    return copy.deepcopy(draft).to(device=target.device, dtype=target.dtype)


def share_embedding(draft: Any, target: Target) -> None:
    """Drop the draft's token embedding where it is only a copy of the target's."""
    own = getattr(draft, "embed_tokens", None)
    if own is None:
        return
    theirs: torch.Tensor = target.embedding.weight  # type: ignore[assignment]
    if theirs.is_meta:  # offloaded
        return
    if own.weight.shape == theirs.shape and torch.allclose(
        own.weight.to(theirs), theirs, rtol=1e-2, atol=1e-3
    ):
        draft.embed_tokens = None
