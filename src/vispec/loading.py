"""From a name to an engine."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from vispec.checkpoints import vispec as vispec_format
from vispec.checkpoints.files import locate, read_config, tensor_headers
from vispec.decoding.engine import Engine
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.base import Draft
from vispec.drafts.eagle import EagleDraft
from vispec.errors import AttentionError, CheckpointError
from vispec.targets import Target, family, wrap

Name = str | os.PathLike[str]


def load(
    target: Name | PreTrainedModel | Target = "embedded",
    draft: Name | Draft | None = None,
    *,
    processor: Any = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    tree: TreeShape | None = None,
    sampled: SampledShape | None = None,
    max_batch: int = 8,
    compile: bool = False,
    **model_options: Any,
) -> Engine:
    """Load a target and its draft.

    Args:
        target: `"embedded"`, a folder, a hub name, or a loaded Hugging Face model.
        draft: `"embedded"`, a folder, a hub name, a draft object, or None for plain decoding. With
            the embedded target, `"embedded"` is its draft.
        processor: of a model that is already loaded.
        dtype: of target and draft; `"auto"` takes the checkpoint's.
        device: where both go.
        tree: budget of the draft trees; by default what the draft's checkpoint recommends.
        sampled: shape of the trees for stochastic acceptance.
        max_batch: requests decoded at the same time.
        compile: compile with `torch.compile`: slow to start, then faster.
        model_options: passed to the model's `from_pretrained`.

    Raises:
        VispecError: for a checkpoint that is missing, unreadable, of an unknown family, or a draft
            that does not fit.
    """
    wrapped = load_target(target, processor, dtype, device, **model_options)
    loaded: Draft | None
    if draft is None or not isinstance(draft, str | os.PathLike):
        loaded = draft
    else:
        loaded, advice = load_draft(draft, wrapped)
        tree = tree or advice
    return Engine(wrapped, loaded, tree=tree, sampled=sampled, max_batch=max_batch, compile=compile)


def load_target(
    target: Name | PreTrainedModel | Target,
    processor: Any = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    **model_options: Any,
) -> Target:
    """Load and wrap a target; see `load`."""
    if isinstance(target, Target):
        return target
    if isinstance(target, PreTrainedModel):
        if processor is None:
            processor = AutoProcessor.from_pretrained(target.name_or_path)
        return wrap(target, processor)
    name = locate(target, "target")
    kind = family(read_config(name).get("model_type") or "", os.fspath(target))
    options = {"attn_implementation": "sdpa"} | model_options
    attention = options["attn_implementation"]
    if isinstance(attention, str) and attention not in ("sdpa", "eager"):
        raise AttentionError(attention)
    for _ in tensor_headers(name):
        pass  # a missing or damaged file is named before anything is loaded
    try:
        # Hugging Face fills what is missing with random numbers and carries on.
        model, report = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        if processor is None:
            processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(os.fspath(target), f"could not be loaded: {error}") from error
    misshapen = [
        f"{key}: found {list(found)}, expected {list(expected)}"
        for key, found, expected in sorted(report["mismatched_keys"])
    ]
    if report["missing_keys"] or misshapen:
        raise CheckpointError(
            os.fspath(target), missing=sorted(report["missing_keys"]), misshapen=misshapen
        )
    return kind(model.to(device).eval(), processor, os.fspath(target))


def load_draft(draft: Name, target: Target) -> tuple[EagleDraft, TreeShape | None]:
    """Load a draft for a target, and the tree its checkpoint recommends.

    Raises:
        CheckpointError: if the folder holds no draft of a known format.
        DraftMismatchError: if it was trained for another target.
    """
    name = locate(draft, "draft")
    config = read_config(name)
    shapes = {key: shape for key, shape, _ in tensor_headers(name)}
    if vispec_format.recognise(config, shapes) is None:
        raise CheckpointError(
            os.fspath(draft),
            "is not a draft of a known format",
            fix="Known are the published ViSpec and EAGLE formats; EAGLE-3 is not one of them.",
        )
    # Geometry first: a draft for another model should be told so, not that tensors differ.
    vispec_format.read_structure(name).check(target)
    loaded = vispec_format.read(name, label=os.fspath(draft))
    share_embedding(loaded, target)
    advice = config.get("tree")
    return loaded.to(device=target.device, dtype=target.dtype), (
        TreeShape(**advice) if advice else None
    )


def share_embedding(draft: EagleDraft, target: Target) -> None:
    """Drop the draft's token embedding where it is only a copy of the target's."""
    own = draft.embed_tokens
    if own is None:
        return
    theirs: torch.Tensor = target.embedding.weight  # type: ignore[assignment]
    if own.weight.shape == theirs.shape and torch.allclose(
        own.weight.to(theirs), theirs, rtol=1e-2, atol=1e-3
    ):
        draft.embed_tokens = None
