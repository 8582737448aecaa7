"""Tiny random models of real architectures, and inputs for them."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from vispec.adapters import QueryAdapter
from vispec.decoding.tree import Tree
from vispec.drafts import EagleConfig, EagleDraft
from vispec.drafts.reading import Rows, Seen
from vispec.drafts.sequential import SequentialDraft
from vispec.targets import Target, wrap
from vispec.targets.base import Prefill, Prompt

VOCAB, IMAGE_TOKEN, EOS, HIDDEN = 48, 47, 2, 32
VISUAL = 9


def llava(
    dtype: torch.dtype = torch.float64, seed: int = 0, attention: str = "sdpa", **text: Any
) -> LlavaForConditionalGeneration:
    """A LLaVA with two decoder layers, grouped key/value heads and nine visual tokens."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=12,
            patch_size=4,
        ),
        text_config=LlamaConfig(
            **{
                "vocab_size": VOCAB,
                "hidden_size": HIDDEN,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
                "bos_token_id": 1,
                "eos_token_id": EOS,
                "pad_token_id": 0,
            }
            | text
        ),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=VISUAL,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    # The default initialisation is so small that every context says the same.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = 0
    return model.to(dtype).eval()


@functools.cache
def target(dtype: torch.dtype = torch.float64, seed: int = 0) -> Target:
    # Whoever asks first may do so in inference mode; what that makes, no one else can train with.
    with torch.inference_mode(False):
        return wrap(llava(dtype, seed), None)


def draft(dtype: torch.dtype = torch.float64, seed: int = 1, queries: int | None = 3) -> EagleDraft:
    """A random draft for the tiny target: ViSpec, or EAGLE without queries."""
    torch.manual_seed(seed)
    config = EagleConfig(HIDDEN, 64, 4, 2, VOCAB)
    adapter = QueryAdapter(HIDDEN, 4, queries) if queries else None
    return EagleDraft(config, adapter).to(dtype).eval().requires_grad_(False)


def inputs(
    generator: torch.Generator, images: int, text: int = 6, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """A random prompt with `images` pictures between stretches of text."""
    parts: list[Tensor] = [torch.tensor([1])]
    for _ in range(images):
        parts.append(torch.randint(3, IMAGE_TOKEN, (text // 2,), generator=generator))
        parts.append(torch.full((VISUAL,), IMAGE_TOKEN))
    parts.append(torch.randint(3, IMAGE_TOKEN, (text,), generator=generator))
    result = {"input_ids": torch.cat(parts)[None]}
    if images:
        pixels = torch.randn(images, 3, 12, 12, generator=generator, dtype=torch.float64)
        result["pixel_values"] = pixels.to(dtype)
    return result


class Oracle:
    """A draft for tests: random trees in which the truth is often hidden.

    Args:
        truth: the whole answer to every prompt, by the prompt's tokens and number of images seen.
        seed: of the trees.
        hit: chance that a true token is put into the tree at each depth.
    """

    name = "oracle"

    def __init__(self, truth: dict[str, list[int]], seed: int = 0, hit: float = 0.8) -> None:
        self.truth, self.hit = truth, hit
        self.random = random.Random(seed)

    def check(self, target: Target) -> None:
        """Fits everything."""

    def feature_layers(self, target: Target) -> tuple[int, ...]:
        return ()

    def session(self, target: Target, slots: int, capacity: int) -> OracleSession:
        return OracleSession(self, slots)


class OracleSession:
    def __init__(self, oracle: Oracle, slots: int) -> None:
        self.oracle = oracle
        self.rest: list[list[int]] = [[] for _ in range(slots)]

    def begin(self, slot: int, prompt: Prompt, prefill: Prefill, token: int) -> None:
        self.rest[slot] = list(self.oracle.truth[prompt_key(prompt.inputs)][1:])

    def propose(self, roots: Tensor, shape: Any, noise: Any) -> Tree:
        draw = self.oracle.random
        size = shape.as_chain().size if shape.width == 1 else shape.size
        rows = []
        for slot in range(len(roots)):
            nodes = [(int(roots[slot]), -1, 0, True)]  # token, parent, depth, on the true path
            while len(nodes) < size:
                parent = draw.randrange(len(nodes))
                if draw.random() < 0.6:
                    parent = max(range(len(nodes)), key=lambda i: (nodes[i][3], nodes[i][2]))
                _, _, depth, true = nodes[parent]
                if depth >= shape.depth:
                    parent, depth, true = 0, 0, True
                if shape.width == 1:  # a chain
                    parent = len(nodes) - 1
                    _, _, depth, true = nodes[parent]
                rest = self.rest[slot]
                token, hit = draw.randrange(VOCAB), False
                if true and depth < len(rest) and draw.random() < self.oracle.hit:
                    token = rest[depth]
                siblings = [n[0] for n in nodes if n[1] == parent]
                if token in siblings:
                    token = next(t for t in range(VOCAB) if t not in siblings)
                hit = true and depth < len(rest) and token == rest[depth]
                nodes.append((token, parent, depth + 1, hit))
            rows.append([n[:3] for n in nodes])
        table = torch.tensor(rows)
        return Tree(
            table[..., 0],
            table[..., 1],
            table[..., 2],
            shape.depth,
            torch.zeros(table.shape[:2]),
        )

    def advance(self, nodes: Any, tokens: Any, features: Tensor) -> None:
        for slot, row in enumerate(tokens):
            self.rest[slot] = self.rest[slot][len(row) :]

    def move(self, source: int, target: int) -> None:
        self.rest[target] = self.rest[source]


def prompt_key(inputs: dict[str, Any]) -> str:
    """Tells prompts apart, their pictures included."""
    seen = [
        f"{value.double().sum().item():.9f}"
        for name, value in sorted(inputs.items())
        if name.startswith("pixel") and isinstance(value, Tensor)
    ]
    return f"{inputs['input_ids'].tolist()} {seen}"


def read(
    draft: SequentialDraft, embeddings: Tensor, features: Tensor, index: Tensor, following: Tensor
) -> Rows:
    """The rows of one prompt and the token behind it."""
    words = torch.cat([embeddings, following[None]])
    index = torch.cat([index, index.new_tensor([-1])])
    (rows,) = draft.read([Seen(words, features, index, len(embeddings))]).rows
    return rows
