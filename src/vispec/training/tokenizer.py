"""The target's tokenizer and processor: byte-level BPE, a LLaVA-1.5 chat template, CLIP pixels.

The conversation format, with ``</s>`` after every answer::

    <s>USER: <image>
    What is this? ASSISTANT:
    A dog.</s>USER: What colour is it? ASSISTANT:
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
SPECIAL = (BOS, EOS, PAD, IMAGE)

_REST = r'[^"\n]*'
QUOTED = rf'[^"\n](?=[^"\n]{{0,47}}"(?:{_REST}"{_REST}")*{_REST}(?:\n|$))'
"""A character with an odd number of double quotes between it and the end of its line."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT:\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER:' }}{% endif %}"
    "{% set gap = '' if message['role'] == 'assistant' else ' ' %}"
    "{% if message['content'] is string %}{{ gap + message['content'] }}"
    "{% else %}"
    "{% for item in message['content'] if item['type'] == 'image' %}{{ ' <image>\n' }}{% endfor %}"
    "{% set images = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% for item in message['content'] if item['type'] == 'text' %}"
    "{{ item['text'] if images and loop.first else gap + item['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer; any UTF-8 text round-trips through it.

    Digits are always single tokens, and so is every character between two double quotes of a line
    (up to 48 of them): what is read off a picture is spelled, one step a character.

    Args:
        texts: training text, consumed once.
        vocabulary: number of tokens, the 4 special ones and the 256 bytes included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"\d|{QUOTED}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE},
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast, size: int = 192, patch: int = 16
) -> LlavaProcessor:
    """The processor of the target: images squashed to ``size`` x ``size``, nothing cropped.

    The image processor is the Pillow one, so torchvision is not needed.
    """
    pixels = CLIPImageProcessorPil(
        size={"height": size, "width": size},
        do_center_crop=False,
        crop_size={"height": size, "width": size},
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
