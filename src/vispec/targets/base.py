"""What the rest of vispec knows about a vision-language model.

A target wraps an unmodified Hugging Face model and its processor. It turns a conversation into
tokens and pixels, runs the prompt, and verifies a tree of tokens in one forward pass. It never
changes the model object.

Shapes: `b` requests, `t` prompt positions, `n` tree nodes, `d` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from vispec.decoding.cache import SlotCache
from vispec.decoding.compilation import compiled
from vispec.decoding.tree import Tree, ancestor_mask
from vispec.errors import AttentionError, CheckpointError, ImageError, PromptTooLongError

Message = Mapping[str, Any]
"""A turn in Hugging Face's format: `{"role": …, "content": str | [{"type": "image"}, …]}`."""


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model's inputs.

    Attributes:
        ids: the prompt's tokens, image placeholders expanded.
        inputs: every tensor the model's forward takes, `input_ids [1, t]` and pixels among them.
        image_index: `[t]`, which image a position belongs to, -1 for text. An image may occupy
            several spans.
    """

    ids: list[int]
    inputs: dict[str, Any]
    image_index: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Prefill:
    """What running a prompt yields.

    Attributes:
        logits: `[1, V]` behind the last prompt position.
        features: `[t, d]` last hidden states, after the final norm.
        embeddings: `[t, d]` the decoder's inputs, image tokens replaced by projected features.
        vision_s: seconds until the decoder started, the vision tower's among them.
        decoder_s: seconds in the decoder.
    """

    logits: Tensor
    features: Tensor
    embeddings: Tensor
    vision_s: float
    decoder_s: float


@dataclass(frozen=True)
class Verification:
    """The target's view of every node of a tree: `logits [b, n, V]`, `features [b, n, d]`."""

    logits: Tensor
    features: Tensor


_LENGTH_AXIS = {"input_ids": -1, "inputs_embeds": -2, "position_ids": -1}
"""Where what a decoder is called with is as long as the prompt."""


class _EnteredDecoder(Exception):  # noqa: N818 - a way out, not an error
    """Leaves a model's forward with what it calls its decoder with."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.inputs = inputs


class Target:
    """An unmodified Hugging Face model that can verify trees.

    A family overrides what differs; see `vispec.targets`.

    Args:
        model: a loaded model with a `generate` of its own.
        processor: its processor (or tokenizer).
        name: what messages call it; the model's own name by default.

    Raises:
        AttentionError: if the decoder's attention cannot take a tree mask.
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
        attention = self.text_config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise AttentionError(attention)

    # --- What families may override -----------------------------------------------------------

    @property
    def decoder(self) -> Any:
        """The module that runs the decoder layers, from embeddings to normed hidden states."""
        return self.model.get_decoder()

    @property
    def image_token_id(self) -> int | None:
        """The placeholder that images occupy in the prompt; None for text models."""
        return getattr(self.config, "image_token_id", None)

    def image_index(self, inputs: Mapping[str, Any]) -> Tensor:
        """`[t]`, the image each position belongs to: here, every run of placeholders is one."""
        ids = inputs["input_ids"][0]
        if self.image_token_id is None:
            return torch.full_like(ids, -1)
        is_image = ids == self.image_token_id
        starts = is_image & ~torch.cat([is_image.new_zeros(1), is_image[:-1]])
        return torch.where(is_image, starts.long().cumsum(0) - 1, -1)

    def positions(self, slot_positions: Tensor) -> Tensor:
        """What the rotary embedding sees for tokens at these slots `[b, n]`."""
        return slot_positions

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
        return self.head.weight.shape[0]

    @property
    def context_length(self) -> int:
        return self.text_config.max_position_embeddings

    @property
    def embedding(self) -> nn.Embedding:
        """The model's own token embedding; drafts share it."""
        return self.model.get_input_embeddings()

    @property
    def head(self) -> nn.Linear:
        """The model's own LM head; drafts share it."""
        return self.model.get_output_embeddings()

    # --- Prompts ------------------------------------------------------------------------------

    def encode(self, prompt: str | Sequence[Message], images: Sequence[Image.Image] = ()) -> Prompt:
        """Apply the chat template and the image processor.

        Args:
            prompt: a question, or a whole conversation whose images appear in order in `images`.
            images: decoded pictures.

        Raises:
            CheckpointError: if the processor has no chat template.
            ImageError: if the conversation and `images` disagree on how many there are.
            PromptTooLongError: if the prompt leaves no room for an answer.
        """
        if isinstance(prompt, str):
            content: list[dict[str, str]] = [{"type": "image"} for _ in images]
            prompt = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
        wanted = sum(
            part.get("type") == "image"
            for message in prompt
            if not isinstance(message["content"], str)
            for part in message["content"]
        )
        if wanted != len(images):
            raise ImageError(
                f"the conversation has {wanted} image places, but {len(images)} images were given;"
                " give one image for each place"
            )
        if getattr(self.processor, "chat_template", None) is None:
            raise CheckpointError(
                self.name,
                "has no chat template",
                missing=["chat_template.jinja"],
                fix="Set processor.chat_template, or use a version of the checkpoint that has one.",
            )
        text = self.processor.apply_chat_template(
            list(prompt), add_generation_prompt=True, tokenize=False
        )
        return self.encode_text(text, images)

    def encode_text(self, text: str, images: Sequence[Image.Image] = ()) -> Prompt:
        """Tokenize text that already has the chat format and image placeholders in it."""
        if self.processor is self.tokenizer:
            inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            bos = getattr(self.tokenizer, "bos_token", None)
            inputs = self.processor(
                images=list(images) or None,
                text=[text],
                return_tensors="pt",
                # The template may write the first token itself.
                add_special_tokens=not (bos and text.startswith(bos)),
            )
        return self.prompt(dict(inputs))

    def prompt(self, inputs: dict[str, Any]) -> Prompt:
        """Take inputs that a processor made for one conversation.

        Raises:
            PromptTooLongError: if they leave no room for an answer.
        """
        moved = {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            if isinstance(value, Tensor)
            else value
            for key, value in inputs.items()
        }
        ids = moved["input_ids"][0].tolist()
        if len(ids) >= self.context_length:
            raise PromptTooLongError(len(ids), self.context_length)
        return Prompt(ids, moved, self.image_index(moved))

    def rows(self, input_ids: Tensor, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Split what `generate` was given for several conversations into one set of inputs each.

        Args:
            input_ids: `[b, t]`, padded on the left.
            inputs: the other inputs of the model's forward; `attention_mask [b, t]` tells padding.
        """
        mask = inputs.get("attention_mask")
        rows = []
        for index, ids in enumerate(input_ids):
            row = {"input_ids": (ids if mask is None else ids[mask[index].bool()])[None]}
            rows.append(row | self.row_images(input_ids, inputs, index))
        return rows

    def row_images(
        self, input_ids: Tensor, inputs: Mapping[str, Any], index: int
    ) -> dict[str, Any]:
        """The visual inputs of one row of a batch; here, a text model's: none."""
        return {}

    # --- Running ------------------------------------------------------------------------------

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache for `slots` requests of up to `capacity` positions each."""
        config = self.text_config
        head_dim = getattr(config, "head_dim", None)
        return SlotCache(
            layers=config.num_hidden_layers,
            slots=slots,
            kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            capacity=capacity,
            dtype=self.dtype,
            device=self.device,
            compiled=self.compiled,
        )

    def compile_passes(self) -> None:
        """Compile the passes over prompts and trees; the model object stays as it is.

        The first pass of every shape then takes tens of seconds (less when the compiler's cache on
        disk knows it), and each later one a half of the time or less. Needs a C++ compiler. From
        the first pass on, the model must stay what it is: no other dtype, adapters or hooks.
        """
        if not self.compiled:
            self.compiled = True
            self._compiled_prompt_pass = compiled(self._prompt_pass)
            self._tree_pass = compiled(self._tree_pass)  # type: ignore[method-assign]

    def prefill(self, prompt: Prompt, cache: SlotCache, slot: int) -> Prefill:
        """Run a prompt through the model's own forward into an empty slot."""
        t = len(prompt)
        cache.length[slot] = 0
        cache.window(slot, 1, t, exact=True)
        started = time.perf_counter()
        seen = self._decoder_inputs(self.prefill_inputs(prompt), cache)
        entered = time.perf_counter()
        if self.compiled and _shapes_known(seen):
            _let_length_vary(seen)
            hidden = self._compiled_prompt_pass(seen)
        else:
            hidden = self._prompt_pass(seen)
        logits = self.head(hidden[:, -1])
        ended = time.perf_counter()
        cache.length[slot] = t
        embeddings = seen.get("inputs_embeds")
        if embeddings is None:
            embeddings = self.embedding(prompt.inputs["input_ids"])
        return Prefill(logits, hidden[0], embeddings[0], entered - started, ended - entered)

    def _prompt_pass(self, inputs: dict[str, Any]) -> Tensor:
        return self.decoder(**inputs).last_hidden_state

    def _decoder_inputs(self, inputs: dict[str, Any], cache: SlotCache) -> dict[str, Any]:
        """What the model's own forward calls its decoder with, images in the embeddings.

        The forward ends there: it returns neither the embeddings that a draft reads nor, compiled
        in one piece with its vision tower, the time that each takes.
        """

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Another thread may be running the same model.
            if kwargs.get("past_key_values") is cache:
                raise _EnteredDecoder(kwargs)

        # Before any hook of the user's, which the pass that follows runs.
        hook = self.decoder.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
        try:
            self.model.base_model(**inputs, past_key_values=cache, use_cache=True)
        except _EnteredDecoder as entered:
            return entered.inputs
        finally:
            hook.remove()
        raise RuntimeError(f"{self.name} did not call its decoder")

    def prefill_inputs(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt's tensors with explicit positions, ready for the model's forward."""
        t = len(prompt)
        inputs = {key: value for key, value in prompt.inputs.items() if key != "attention_mask"}
        slots = torch.arange(t, device=self.device)[None]
        return inputs | {"position_ids": self.positions(slots)}

    def verify(self, tree: Tree, cache: SlotCache, first: int = 0) -> Verification:
        """Run every node of a tree in one pass, each seeing its slot's past and its ancestors.

        The nodes' keys are written behind each slot's kept ones; `cache.keep` decides which stay.
        """
        cache.window(first, *tree.token.shape)
        place = tree.depth, tree.parent, tree.max_depth
        return Verification(*self._tree_pass(tree.token, *place, cache))

    def _tree_pass(
        self, token: Tensor, depth: Tensor, parent: Tensor, max_depth: int, cache: SlotCache
    ) -> tuple[Tensor, Tensor]:
        """`(logits [b, n, V], features [b, n, d])` of a tree in the cache's window."""
        hidden = self.decoder(
            input_ids=token.clamp(min=0),
            position_ids=self.positions(cache.kept[:, None] + depth),
            attention_mask=cache.attention_mask(ancestor_mask(parent, max_depth), self.dtype),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.head(hidden), hidden

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


def _shapes_known(inputs: dict[str, Any]) -> bool:
    """Whether a decoder is given nothing but what can be compiled for prompts of every length."""
    given = {name for name, value in inputs.items() if value is not None}
    return given <= _LENGTH_AXIS.keys() | {"past_key_values", "use_cache"}


def _let_length_vary(inputs: dict[str, Any]) -> None:
    """Mark the length of a decoder's inputs as one that varies, so that it is compiled once."""
    for name, axis in _LENGTH_AXIS.items():
        if inputs.get(name) is not None:
            torch._dynamo.maybe_mark_dynamic(inputs[name], inputs[name].ndim + axis)
