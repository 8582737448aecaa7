"""What is shown reaches every family's processor as its own `apply_chat_template` gives it.

Where torchvision is missing, Hugging Face's processors lack their part for videos, and some are not
there at all.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.utils import is_torchvision_available

import talking
from vispec.loading_targets import _without_videos
from vispec.messages import conversation
from vispec.targets.encoding import chat_text, model_inputs

PATCHES = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
PROCESSORS: dict[str, tuple[str, str, str, dict[str, str], dict[str, Any]]] = {
    # model type: processor, its image processor, what stands for an image, tokens, arguments
    "llava_next": (
        "LlavaNextProcessor",
        "LlavaNextImageProcessor",
        "<image>",
        {"image": "<image>"},
        PATCHES | {"patch_size": 14},
    ),
    "llava_onevision": (
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessor",
        "<image>",
        {"image": "<image>", "video": "<video>"},
        {"num_image_tokens": 729, "vision_feature_select_strategy": "full"},
    ),
    "gemma3": (
        "Gemma3Processor",
        "Gemma3ImageProcessor",
        "<boi>",
        {"image": "<soft>", "boi": "<boi>", "eoi": "<eoi>"},
        {"image_seq_length": 256},
    ),
    "idefics3": (
        "Idefics3Processor",
        "Idefics3ImageProcessor",
        "<image>",
        {"image": "<image>", "fake_image": "<around>", "global_image": "<global>"},
        {"image_seq_len": 64},
    ),
    "lfm2_vl": (
        "Lfm2VlProcessor",
        "Lfm2VlImageProcessor",
        "<image>",
        {"image": "<image>", "image_start": "<s>", "image_end": "</s>", "image_thumbnail": "<t>"},
        {},
    ),
    "mistral3": (
        "PixtralProcessor",
        "PixtralImageProcessor",
        "[IMG]",
        {"image": "[IMG]", "image_break": "[IMG_BREAK]", "image_end": "[IMG_END]"},
        {"patch_size": 14, "spatial_merge_size": 2},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLProcessor",
        "Qwen2VLImageProcessor",
        "<open><pad><close>",
        {
            "image": "<pad>",
            "video": "<film>",
            "vision_start": "<open>",
            "vision_end": "<close>",
        },
        {},
    ),
    "qwen3_vl": (
        "Qwen3VLProcessor",
        "Qwen2VLImageProcessor",
        "<open><pad><close>",
        {
            "image": "<pad>",
            "video": "<film>",
            "vision_start": "<open>",
            "vision_end": "<close>",
        },
        {},
    ),
    "internvl": (
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        "<tile>\n",
        {"start_image": "<img>", "end_image": "</img>", "context_image": "<tile>", "video": "<v>"},
        {"image_seq_length": 256},
    ),
}
SIZES = [(60, 100), (300, 80), (64, 64)]


def processor(name: str) -> Any:
    kind, images, place, marks, arguments = PROCESSORS[name]
    # A text model's tokenizer, with the tokens that this family adds.
    tokenizer = copy.deepcopy(talking.byte_level())
    tokenizer.add_tokens(list(marks.values()), special_tokens=True)
    for mark, token in marks.items():
        number = tokenizer.convert_tokens_to_ids(token)
        setattr(tokenizer, f"{mark}_token", token)
        setattr(tokenizer, f"{mark}_token_id", number)
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}" + place + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    made = getattr(transformers, kind)
    try:
        wanted = getattr(transformers, f"{images}Pil", None) or getattr(transformers, images)
        if "video_processor" in made.get_attributes():
            made, arguments = _without_videos(made), arguments | {"video_processor": None}
        return made(
            image_processor=wanted(), tokenizer=tokenizer, chat_template=template, **arguments
        )
    except ImportError:
        assert not is_torchvision_available()
        pytest.skip(f"{kind} needs torchvision")


@pytest.mark.parametrize("count", range(4))
@pytest.mark.parametrize("name", PROCESSORS)
def test_inputs_are_those_of_the_processors_own_template(name: str, count: int) -> None:
    draw = np.random.default_rng(0)
    pictures = [
        Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES[:count]
    ]
    shown = [{"type": "image", "image": picture} for picture in pictures]
    asked = [{"role": "user", "content": [*shown, {"type": "text", "text": "what is it ?"}]}]
    made = processor(name)
    theirs = made.apply_chat_template(
        asked, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    text = chat_text(made, conversation(asked).messages, name)
    ours = model_inputs(made, text, pictures, [], name=name, model_type=name)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
