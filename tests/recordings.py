"""Recordings of published drafts, as the tests use them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vispec.checkpoints.registry import from_tensors
from vispec.decoding.tree import TreeShape
from vispec.drafts.eagle import EagleDraft
from vispec.drafts.sequential_session import SequentialSession
from vispec.targets.base import Prefill, Prompt

FIXTURES = Path(os.environ.get("VISPEC_FIXTURES", Path(__file__).parent / "fixtures"))


def cases(folder: str, pattern: str = "*") -> list[str]:
    """Names of the recordings in one folder; none at all is an error, not a skip."""
    names = sorted(path.stem for path in (FIXTURES / folder).glob(f"{pattern}.json"))
    if not names:
        raise FileNotFoundError(f"no recordings {pattern}.json in {FIXTURES / folder}")
    return [f"{folder}/{name}" for name in names]


@dataclass
class Recording:
    """One recorded case and the same situation set up with our draft."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    draft: EagleDraft
    session: SequentialSession

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    @property
    def shape(self) -> TreeShape:
        tree = self.meta["tree"]
        # The published depth counts draft passes after the first level.
        return TreeShape(tree["total_tokens"], tree["depth"] + 1, tree["top_k"])

    @property
    def image_index(self) -> Tensor:
        length = self["target_hidden"].shape[1]
        mask = self.tensors.get("image_mask", torch.zeros(1, length, dtype=torch.bool))[0]
        return torch.where(mask, 0, -1)

    @property
    def prompt(self) -> Prompt:
        return Prompt(self["input_ids"][0, :-1].tolist(), {})

    @property
    def prefill(self) -> Prefill:
        weight = self["weight.embed_tokens.weight"]
        embeds = self.tensors.get("target_embeds", weight[self["input_ids"][:, :-1]])
        hidden = self["target_hidden"][0]
        return Prefill(torch.empty(0), hidden, embeds[0], self.image_index, 0.0, 0.0)

    def begin(self, slot: int = 0) -> None:
        self.session.begin(slot, self.prompt, self.prefill, int(self["input_ids"][0, -1]))


def load(case: str, slots: int = 1) -> Recording:
    meta = json.loads((FIXTURES / f"{case}.json").read_text())
    tensors = load_file(FIXTURES / f"{case}.safetensors")
    weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
    draft = from_tensors(meta["config"], weights, case)
    head = nn.Linear(*reversed(tensors["head.weight"].shape), bias=False)
    head.weight = nn.Parameter(tensors["head.weight"], requires_grad=False)
    target: Any = SimpleNamespace(head=head, device=torch.device("cpu"))
    return Recording(meta, tensors, draft, draft.session(target, slots, 256))
