"""From names to an engine."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import PreTrainedModel

from vispec.decoding.engine import Engine
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.base import Draft
from vispec.loading_drafts import load_draft, placed
from vispec.loading_targets import Name, load_target
from vispec.messages import Fetch
from vispec.targets import Target


def load(
    target: Name | PreTrainedModel | Target = "embedded",
    draft: Name | Draft | None = None,
    *,
    processor: Any = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    tree: TreeShape | None = None,
    sampled: SampledShape | None = None,
    max_batch: int = 8,
    compile: bool = False,
    fetch: Fetch | None = None,
    allow_pickle: bool = False,
    **model_options: Any,
) -> Engine:
    """Load a target and its draft.

    Args:
        target: `"embedded"`, a folder, a hub name (`name@revision` pins one), either of a model or
            of a PEFT adapter that names its base, or a loaded Hugging Face or PEFT model.
        draft: `"embedded"`, a folder, a hub name, a draft object, or None for plain decoding. With
            the embedded target, `"embedded"` is its draft. A folder may also hold a whole model,
            which then drafts; `"lookup"` proposes what followed the same words before, and
            `"NAME+lookup"` does so where the text repeats itself. Of an object in other numbers
            than the target's, or on another device, a copy is used.
        processor: of a model that is already loaded.
        dtype: of target and draft; `"auto"` takes the checkpoint's.
        device: where both go; `"auto"` is CUDA's first device, or the CPU where there is none. To
            spread a model over several devices, pass `device_map` instead.
        tree: budget of the draft trees; by default what the draft's checkpoint recommends.
        sampled: shape of the trees for stochastic acceptance.
        max_batch: requests decoded at the same time.
        compile: compile with `torch.compile`: slow to start, then faster.
        fetch: gets images and videos at remote addresses; by default there is none.
        allow_pickle: read pickled weights where there are no safetensors. Opening them can run
            code: only for checkpoints that you trust.
        model_options: passed to the model's `from_pretrained`, `device_map` and quantisation among
            them. Code that comes with a checkpoint is run with `trust_remote_code=True` only.

    Raises:
        VispecError: for a checkpoint that is missing, unreadable, of an unknown family, or a draft
            that does not fit.
    """
    wrapped = load_target(target, processor, dtype, device, pickled=allow_pickle, **model_options)
    loaded: Draft | None
    if draft is None or not isinstance(draft, str | os.PathLike):
        loaded = placed(draft, wrapped)
    else:
        loaded, advice = load_draft(draft, wrapped, pickled=allow_pickle)
        tree = tree or advice
    return Engine(
        wrapped,
        loaded,
        tree=tree,
        sampled=sampled,
        max_batch=max_batch,
        fetch=fetch,
        compile=compile,
    )
