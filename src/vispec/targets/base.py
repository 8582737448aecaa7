"""What the rest of vispec knows about a vision-language model.

A target wraps an unmodified Hugging Face model and its processor. It turns a conversation into
tokens and pixels, runs the prompt, and verifies a tree of tokens in one forward pass. It never
changes the model object.

Shapes: `b` requests, `t` prompt positions, `n` tree nodes, `d` hidden size, `V` vocabulary, `f`
features: `d`, or `k d` where `k` layers' hidden states are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from vispec.decoding.cache import SlotCache
from vispec.decoding.compilation import compiled, lengths_may_vary, let_length_vary
from vispec.decoding.tree import Tree, ancestor_mask
from vispec.errors import PromptTooLongError
from vispec.images import ImageSource, load_image
from vispec.messages import Fetch, conversation
from vispec.targets.encoding import chat_text, model_inputs
from vispec.targets.hooks import (
    attending,
    branched,
    decoder_inputs,
    execution_device,
    recorded,
    replayed,
    watched,
    with_cache,
)
from vispec.targets.visual import MODALITIES, index_by_count, run_towers
from vispec.videos import VideoSource

Message = Mapping[str, Any]
"""A turn in OpenAI's or Hugging Face's format; see `vispec.messages`."""


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model's inputs.

    Attributes:
        ids: the prompt's tokens, image placeholders expanded.
        inputs: every tensor the model's forward takes, `input_ids [1, t]` and pixels among them.
    """

    ids: list[int]
    inputs: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Prefill:
    """What running a prompt yields.

    Attributes:
        logits: `[1, V]` behind the last prompt position.
        features: `[t, f]` last hidden states after the final norm, or of the layers asked for.
        embeddings: `[t, d]` the decoder's inputs, image tokens replaced by projected features.
        image_index: `[t]`, which image or video a position belongs to, -1 for text. One may occupy
            several spans: tiles, or frames between time stamps.
        vision_s: seconds until the decoder started, the vision tower's among them.
        decoder_s: seconds in the decoder.
        positions: `[t]`, or `[3, t]` under M-RoPE, what the rotary embedding saw.
        hidden: `[t, d]` last hidden states after the final norm, whatever the features are.
    """

    logits: Tensor
    features: Tensor
    embeddings: Tensor
    image_index: Tensor
    vision_s: float
    decoder_s: float
    positions: Tensor | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Verification:
    """The target's view of every node of a tree.

    Attributes:
        logits: `[b, n, V]`.
        features: `[b, n, f]`.
        hidden: `[b, n, d]` last hidden states after the final norm, which the LM head reads.
    """

    logits: Tensor
    features: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class _Passes:
    """The passes of a target, compiled, that note the hidden states of some layers."""

    prompt: Callable[..., Any]
    tree: Callable[..., Any]


_RECURRENT = frozenset(("conv", "linear_attention"))
"""Kinds of decoder layers that keep a state instead of keys and values."""


def cache_shapes(text_config: Any) -> list[tuple[int, int] | None]:
    """`(kv_heads, head_dim)` of every decoder layer; None where it keeps no keys of its own."""
    shapes: list[tuple[int, int] | None] = []
    kinds: list[str] = get_layer_types_and_kwargs(text_config)[0]
    for kind, layer in zip(kinds, text_config.per_layer_config, strict=True):
        if kind in _RECURRENT or kind == "dummy":  # a state, or the keys of another layer
            shapes.append(None)
            continue
        heads = layer.num_attention_heads
        head_dim = getattr(layer, "head_dim", None) or layer.hidden_size // heads
        shapes.append((getattr(layer, "num_key_value_heads", None) or heads, head_dim))
    return shapes


class Target:
    """An unmodified Hugging Face model that can verify trees.

    A family overrides what differs; see `vispec.targets`.

    Args:
        model: a loaded model with a `generate` of its own.
        processor: its processor (or tokenizer).
        name: what messages call it; the model's own name by default.
    """

    model_types: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel, processor: Any, name: str | None = None) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.name = name or model.name_or_path or model.config.model_type
        self.config = model.config
        self.text_config = model.config.get_text_config()
        self.compiled = False
        self._compiled_passes: dict[tuple[int, ...], _Passes] = {}
        self.layer_kinds: list[str] = get_layer_types_and_kwargs(self.text_config)[0]
        """What every decoder layer attends to, in Hugging Face's words ("full_attention", …)."""

    # --- What families may override -----------------------------------------------------------

    @property
    def decoder(self) -> Any:
        """The module that runs the decoder layers, from embeddings to normed hidden states."""
        return self.model.get_decoder()

    def placeholders(self, inputs: Mapping[str, Any]) -> Tensor:
        """`[…, t]` like the `input_ids`: 0 where text is, else the number of its modality."""
        ids: Tensor = inputs["input_ids"]
        marked = inputs.get("mm_token_type_ids")
        if marked is not None:
            return torch.where(marked <= max(MODALITIES.values()), marked, 0)
        kinds = torch.zeros_like(ids)
        for modality, number in MODALITIES.items():
            token = getattr(self.config, f"{modality}_token_id", None)
            if token is not None:
                kinds.masked_fill_(ids == token, number)
        return kinds

    def image_index(self, inputs: Mapping[str, Any], shown: Mapping[str, Any]) -> Tensor:
        """`[t]`, the image or video each position belongs to, in their order; -1 for text.

        Here, placeholders are dealt out by how many features each image and video has.

        Args:
            inputs: of one prompt.
            shown: what the vision tower made of it, by modality.
        """
        return index_by_count(self.placeholders(inputs)[0], shown)

    def prompt_positions(self, inputs: Mapping[str, Any]) -> tuple[Tensor, int]:
        """What the rotary embedding sees at a prompt's positions, and how far it is off behind it.

        Returns:
            positions `[1, t]`, or `[3, 1, t]` under M-RoPE, and what is added to the slot position
            of every later token.
        """
        t = inputs["input_ids"].shape[1]
        return torch.arange(t, device=self.device)[None], 0

    @property
    def logit_cap(self) -> float | None:
        """What bounds the model's logits: of a text model, what it states; of most others, none."""
        return getattr(self.config, "final_logit_softcapping", None)

    def input_tokens(self, token: Tensor) -> Tensor:
        """What the decoder is given for tokens that the model said, `[b, n]`."""
        return token

    # --- Facts --------------------------------------------------------------------------------

    @property
    def model_type(self) -> str:
        return self.config.model_type

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def hidden_size(self) -> int:
        return self.text_config.hidden_size

    @property
    def vocab_size(self) -> int:
        # Quantised weights may have another shape.
        return getattr(self.head, "out_features", None) or self.head.weight.shape[0]

    @property
    def context_length(self) -> int:
        return self.text_config.max_position_embeddings

    @property
    def chains_only(self) -> bool:
        """Whether layers carry a memory along, so that only one path can be verified in a pass."""
        return "linear_attention" in self.layer_kinds

    @property
    def tree_attention(self) -> str | None:
        """What verifies trees in place of an attention that takes no mask, such as flash's."""
        if self.text_config._attn_implementation in ("sdpa", "eager"):
            return None
        return "sdpa" if getattr(self.model, "_supports_sdpa", True) else "eager"

    @property
    def embedding(self) -> nn.Embedding:
        """The model's own token embedding; drafts share it."""
        return self.model.get_input_embeddings()

    @property
    def head(self) -> nn.Linear:
        """The model's own LM head; drafts share it."""
        return self.model.get_output_embeddings()

    # --- Prompts ------------------------------------------------------------------------------

    def encode(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        *,
        fetch: Fetch | None = None,
        frames: int | None = None,
    ) -> Prompt:
        """Apply the chat template and the processor; arguments as of `messages.conversation`.

        Args:
            frames: how many of each video are shown; the family's own choice by default.

        Raises:
            CheckpointError: if the processor has no chat template.
            ConversationError: for messages in no known format, or without what they show.
            ImageError: for an image that cannot be decoded.
            VideoError: for a video that cannot be decoded, or a model that takes none.
            PromptTooLongError: if the prompt leaves no room for an answer.
        """
        asked = conversation(prompt, images, videos, fetch=fetch)
        text = chat_text(self.processor, asked.messages, self.name)
        pictures = [load_image(one) for one in asked.images]
        return self.encode_text(text, pictures, asked.videos, frames=frames)

    def encode_text(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        videos: Sequence[VideoSource] = (),
        *,
        frames: int | None = None,
    ) -> Prompt:
        """Tokenize text that already has the chat format and placeholders in it."""
        named = {"name": self.name, "model_type": self.model_type}
        return self.prompt(
            model_inputs(self.processor, text, images, videos, frames=frames, **named)
        )

    def prompt(self, inputs: dict[str, Any]) -> Prompt:
        """Take inputs that a processor made for one conversation.

        Raises:
            PromptTooLongError: if they leave no room for an answer.
        """
        moved = {
            key: value.to(self.device, self.dtype if _is_pixels(key, value) else None)
            if isinstance(value, Tensor)
            else value
            for key, value in inputs.items()
        }
        ids = moved["input_ids"][0].tolist()
        if len(ids) >= self.context_length:
            shown = int((self.placeholders(moved) != 0).sum())
            raise PromptTooLongError(len(ids), self.context_length, shown)
        return Prompt(ids, moved)

    # --- Running ------------------------------------------------------------------------------

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache for `slots` requests of up to `capacity` positions each."""
        devices = [execution_device(layer) for layer in self.decoder.layers]
        return SlotCache(
            shapes=cache_shapes(self.text_config),
            slots=slots,
            capacity=capacity,
            dtype=self.dtype,
            device=self.device,
            devices=devices,
            compiled=self.compiled,
        )

    def compile_passes(self) -> None:
        """Compile the passes over prompts and trees; the model object stays as it is.

        The first pass of every shape then takes tens of seconds (less when the compiler's cache on
        disk knows it), and each later one a half of the time or less. Needs a C++ compiler. From
        the first pass on, the model must stay what it is: no other dtype, adapters or hooks.
        """
        self.compiled = True

    def _compiled(self, layers: Sequence[int]) -> _Passes | None:
        """Compiled passes; None where the target is run as it is."""
        if not self.compiled or (layers and "forward" in vars(self.decoder)):
            return None  # accelerate's forward is bound to the decoder that is there
        key = tuple(layers)
        if key not in self._compiled_passes:
            decoder, found = watched(self.decoder, key)

            def prompt(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
                hidden = self._prompt_pass(decoder, inputs)
                return hidden, found.features(hidden)

            def tree(*place: Any) -> tuple[Tensor, Tensor, Tensor]:
                logits, hidden = self._tree_pass(decoder, *place)
                return logits, hidden, found.features(hidden)

            self._compiled_passes[key] = _Passes(compiled(prompt), compiled(tree))
        return self._compiled_passes[key]

    def prefill(
        self, prompt: Prompt, cache: SlotCache, slot: int, layers: Sequence[int] = ()
    ) -> Prefill:
        """Run a prompt through the model's own forward into an empty slot.

        Args:
            layers: whose hidden states are the features: `i` is what decoder layer `i` is given,
                the number of layers what the last one gives. By default the final norm's output.
        """
        t = len(prompt)
        positions, offset = self.prompt_positions(prompt.inputs)
        cache.length[slot] = cache.offset[slot] = 0
        cache.window(slot, 1, t, exact=True)
        started = time.perf_counter()
        inputs, shown = run_towers(self.model.base_model, prompt.inputs)
        inputs = {**inputs, "position_ids": positions, "attention_mask": None}
        seen = decoder_inputs(self.model.base_model, self.decoder, inputs, cache)
        entered = time.perf_counter()
        passes = self._compiled(layers)
        if passes and lengths_may_vary(seen):
            let_length_vary(seen)
            hidden, features = passes.prompt(seen)
        else:
            with recorded(self.decoder, layers, cache) as found:
                hidden = self._prompt_pass(self.decoder, seen)
            features = found.features(hidden)
        logits = self.logits(hidden[:, -1])
        ended = time.perf_counter()
        # Of a model on several devices, what comes out lies on the last one.
        features = features[0].to(self.device)
        cache.keep(slot, range(t))
        cache.offset[slot] = offset
        embeddings = seen.get("inputs_embeds")
        if embeddings is None:
            embeddings = self.embedding(prompt.inputs["input_ids"])
        return Prefill(
            logits.to(self.device),
            features,
            embeddings[0],
            self.image_index(prompt.inputs, shown),
            entered - started,
            ended - entered,
            positions[..., 0, :],
            hidden[0].to(self.device),
        )

    def _prompt_pass(self, decoder: Any, inputs: dict[str, Any]) -> Tensor:
        return decoder(**inputs).last_hidden_state

    def verify(
        self, tree: Tree, cache: SlotCache, first: int = 0, layers: Sequence[int] = ()
    ) -> Verification:
        """Run every node of a tree in one pass, each seeing its slot's past and its ancestors.

        The nodes' keys are written behind each slot's kept ones; `cache.keep` decides which stay.

        Args:
            layers: whose hidden states are the features; see `prefill`.

        """
        cache.window(first, *tree.token.shape)
        place = tree.depth, tree.parent, tree.max_depth
        # Hooks that come and go are not seen by a compiled pass.
        hooked = not _RECURRENT.isdisjoint(self.layer_kinds)
        passes = None if hooked or self.tree_attention else self._compiled(layers)
        if passes:
            logits, hidden, features = passes.tree(tree.token, *place, cache)
        else:
            one_path = self.chains_only or tree.token.shape[1] == 1
            with (
                recorded(self.decoder, layers, cache) as found,
                replayed(self.decoder, cache) if one_path else branched(self.decoder, cache, tree),
                attending(self.text_config, self.tree_attention),
            ):
                logits, hidden = self._tree_pass(self.decoder, tree.token, *place, cache)
            features = found.features(hidden)
        return Verification(
            logits.to(self.device), features.to(self.device), hidden.to(self.device)
        )

    def extend(self, token: Tensor, depth: Tensor, seen: Tensor, cache: SlotCache) -> Tensor:
        """Run the tokens of a cache's window one level after another, as a draft does.

        For decoders of full attention alone.

        Args:
            token: `[b, n]`.
            depth: `[b, n]`, how far below the kept tokens each stands.
            seen: `[b, n, m]`, which of the `m` tokens behind the kept ones each sees; the queries
                are the last `n` of them.

        Returns:
            logits `[b, n, V]`.
        """
        mask = cache.attention_mask(seen, self.dtype)
        with attending(self.text_config, self.tree_attention):
            hidden = self._nodes_pass(self.decoder, token, depth, mask, cache)
        return self.logits(hidden)

    def _tree_pass(
        self,
        decoder: Any,
        token: Tensor,
        depth: Tensor,
        parent: Tensor,
        max_depth: int,
        cache: SlotCache,
    ) -> tuple[Tensor, Tensor]:
        """`(logits [b, n, V], hidden [b, n, d])` of a tree in the cache's window."""
        mask = self._tree_mask(ancestor_mask(parent, max_depth), depth, cache)
        hidden = self._nodes_pass(decoder, token.clamp(min=0), depth, mask, cache)
        return self.logits(hidden), hidden

    def _nodes_pass(
        self, decoder: Any, token: Tensor, depth: Tensor, mask: Any, cache: SlotCache
    ) -> Tensor:
        """`[b, n, d]` of tokens in the cache's window, so far below its kept ones."""
        hidden: Tensor = decoder(
            input_ids=self.input_tokens(token),
            position_ids=cache.next_position[:, None] + depth,
            attention_mask=mask,
            **with_cache(decoder, cache),
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _tree_mask(
        self, block: Tensor, depth: Tensor, cache: SlotCache
    ) -> Tensor | dict[str, Tensor | None]:
        """The mask of a tree pass, or one for every kind of layer where there are several."""
        masks: dict[str, Tensor | None] = {}
        for kind in self.layer_kinds:
            if kind in masks or kind == "dummy":
                continue
            if kind in _RECURRENT:
                masks[kind] = None
            elif kind == "sliding_attention":
                window = self.text_config.sliding_window
                masks[kind] = cache.attention_mask(block, self.dtype, depth=depth, sliding=window)
            else:
                masks[kind] = cache.attention_mask(block, self.dtype)
        only = next(iter(masks.values()))
        return masks if len(masks) > 1 or only is None else only

    def logits(self, hidden: Tensor) -> Tensor:
        """`[…, V]` of normed hidden states `[…, d]`, as the model's own forward makes them."""
        logits = self.head(hidden)
        cap = self.logit_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    # --- Choosing -----------------------------------------------------------------------------

    def processors(
        self,
        config: GenerationConfig,
        prompt_length: int,
        limit: int,
        extra: LogitsProcessorList | None = None,
    ) -> LogitsProcessorList:
        """The logits processors that the model's own `generate` would build.

        Args:
            config: the checkpoint's generation configuration with a request's wishes in it.
            prompt_length: tokens before the answer.
            limit: most new tokens.
            extra: processors that come after those of `config`.
        """
        config.max_length = prompt_length + limit
        eos = sorted(self.eos_token_ids)
        config._eos_token_tensor = torch.tensor(eos, device=self.device) if eos else None
        return self.model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=prompt_length,
            logits_processor=LogitsProcessorList(extra or ()),
            device=self.device,
            model_kwargs={},
        )

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer, from the checkpoint's generation configuration."""
        eos = self.model.generation_config.eos_token_id
        if eos is None:
            eos = getattr(self.text_config, "eos_token_id", None)
        if eos is None:
            return frozenset()
        return frozenset(eos if isinstance(eos, list | tuple) else [eos])


def _is_pixels(key: str, value: Tensor) -> bool:
    """Whether an input is what a vision tower computes with; seconds a frame, say, are not."""
    return value.is_floating_point() and key.startswith("pixel")
