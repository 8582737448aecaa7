"""Small tokenizers of the two kinds there are, and a tiny LLaVA that talks with one of them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import tiny

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BYTES = pre_tokenizers.ByteLevel.alphabet()
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['role'] + ':' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}"
    "{% else %}{% for item in message['content'] %}"
    "{{ ' <image>' if item['type'] == 'image' else ' ' + item['text'] }}"
    "{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the vocabulary of `tiny`: lower case, and bytes of "é" and "…"."""
    merges = ["th", "the", "in", "Ġa", "Ġt", "Ġthe"]
    tokens = ["<pad>", "<s>", "</s>", *LETTERS, *"Ġ.,?!:Ċ", *"Ã©âĢ¦", *merges, "<image>"]
    assert len(tokens) == tiny.VOCAB
    assert tokens[tiny.EOS] == "</s>"
    assert tokens[tiny.IMAGE_TOKEN] == "<image>"
    pairs = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("Ġ", "t"), ("Ġ", "the")]
    return _byte_level({token: i for i, token in enumerate(tokens)}, pairs)


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE with all bytes, and tokens that end or begin inside a character."""
    words = ["th", "the", "Ġt", "Ġthe", "Ġ", "ĠĠ"]
    # The beginnings of 你, of "…" behind a space or a letter, and of an emoji; the end of 好.
    pieces = ["ä½", "Ġâ", "ĠâĢ", "aâĢ", "ðŁ", "łå¥", "½A"]
    tokens = ["<pad>", "<s>", "</s>", *sorted(BYTES), *words, *pieces, "<image>"]
    return _byte_level({token: i for i, token in enumerate(dict.fromkeys(tokens))}, [])


def _byte_level(
    vocabulary: dict[str, int], merges: list[tuple[str, str]]
) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _wrapped(made)


@functools.cache
def sentencepiece(decoder: str = "llama") -> PreTrainedTokenizerFast:
    """SentencePiece's manner: "▁" for spaces, and bytes for what the vocabulary lacks.

    Args:
        decoder: `"llama"` falls back to bytes; `"metaspace"` knows spaces only.
    """
    words = ["▁▁", "▁the", "the", "th", "▁a", "▁cat", "ing", "你"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *fallback, "▁", *LETTERS, *".,!?", *words, "<image>", "<pad>"]
    model = models.BPE(
        {token: i for i, token in enumerate(tokens)},
        [("▁", "▁"), ("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = (
        decoders.Metaspace()
        if decoder == "metaspace"
        else decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    )
    return _wrapped(made)


def _wrapped(made: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **SPECIAL,
        padding_side="left",
        model_max_length=1000,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>"},
    )


@functools.cache
def processor() -> LlavaProcessor:
    """For the models of `tiny`: pictures of 12 x 12 pixels, nine visual tokens each."""
    size = {"height": 12, "width": 12}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, do_center_crop=False, crop_size=size),
        tokenizer=tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token="<image>",
    )


def target(dtype: torch.dtype = torch.float64, seed: int = 0, **text: Any) -> tiny.Target:
    """A tiny target that reads and writes text."""
    return tiny.wrap(tiny.llava(dtype, seed, **text), processor())


def save(folder: Path, dtype: torch.dtype = torch.float32, **text: Any) -> Path:
    """The same on disk, model and processor in one folder."""
    tiny.llava(dtype, **text).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def picture(seed: int) -> Image.Image:
    """A small random picture."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (4, 5, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((20, 16))
