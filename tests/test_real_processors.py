"""Published tokenizers, processors and chat templates, on photographs and clips.

They belong to others and are not part of this project: the folder that holds `tokenizers/`,
`coco_mini/` and `video/` is named by `VISPEC_DATA`. Behind each stands a small random model of its
family; the reference is what Hugging Face's processor and `generate` make of the same conversation.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig
from transformers.utils import is_torchcodec_available, is_torchvision_available

import families
import vispec
from vispec.drafts import EagleConfig, EagleDraft
from vispec.targets import auto_class

DATA = Path(os.environ.get("VISPEC_DATA", Path(__file__).parents[2] / "shared" / "data"))
pytestmark = pytest.mark.skipif(
    not (DATA / "tokenizers").is_dir(), reason=f"there are no published tokenizers in {DATA}"
)
needs_torchvision = pytest.mark.skipif(
    not is_torchvision_available(), reason="Hugging Face's video processors need torchvision"
)
needs_torchcodec = pytest.mark.skipif(
    not is_torchcodec_available(), reason="Hugging Face decodes videos with torchcodec"
)

WHAT = "What is shown here?"
BIG_CLIP = families.CLIP | {"image_size": 336, "patch_size": 14}
SIDES = {"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]}
MODELS: dict[str, dict[str, Any]] = {
    "llava-1.5-7b-hf": {
        "model_type": "llava",
        "vision_config": BIG_CLIP,
        "text_config": families.TEXT_CONFIG | {"model_type": "llama", "vocab_size": 32064},
        "image_token_index": 32000,
    },
    "llava-next-video-7b-finetune": {
        "model_type": "llava_next_video",
        "vision_config": BIG_CLIP,
        "text_config": families.TEXT_CONFIG | {"model_type": "mistral", "vocab_size": 32064},
        "image_token_index": 32001,
        "video_token_index": 32000,
        **SIDES,
    },
    "qwen2.5-vl": {
        "model_type": "qwen2_5_vl",
        "vision_config": families.QWEN_VISION
        | {"patch_size": 14, "fullatt_block_indexes": [1], "window_size": 112},
        "text_config": families.TEXT_CONFIG
        | {"vocab_size": 151680, "rope_parameters": families.MROPE},
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of every model: the published files, and small weights."""
    made = {}
    for name, config in MODELS.items():
        made[name] = folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        # The published context lengths: pictures take thousands of tokens.
        config["text_config"]["max_position_embeddings"] = 32768
        model = auto_class(config["model_type"]).from_config(AutoConfig.for_model(**config))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        for file in (DATA / "tokenizers" / name).iterdir():
            if file.name not in ("config.json", "generation_config.json"):
                shutil.copy(file, folder)
    return made


def engine(folder: Path) -> vispec.Engine:
    """In float64, with a random draft."""
    torch.manual_seed(1)
    target = vispec.load(folder, dtype=torch.float64).target
    size = target.decoder.config.hidden_size
    draft = EagleDraft(EagleConfig(size, 48, 4, 2, target.vocab_size)).double().eval()
    return vispec.load(target, draft)


def photographs(count: int) -> list[Image.Image]:
    files = sorted((DATA / "coco_mini" / "images").glob("*.jpg"))
    return [Image.open(file).convert("RGB") for file in files[:count]]


def asked(images: list[Any], videos: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """A conversation in Hugging Face's format, of two turns."""
    shown = [{"type": "image", "image": image} for image in images]
    shown += [{"type": "video", "path": video} for video in videos]
    return [
        {"role": "user", "content": [*shown, {"type": "text", "text": WHAT}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A photograph."}]},
        {"role": "user", "content": [{"type": "text", "text": "Is it old?"}]},
    ]


def same_inputs(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key in ("input_ids", *(key for key in theirs if "pixel" in key or "grid" in key)):
        assert torch.equal(ours[key].to(theirs[key].dtype), theirs[key]), key


def same_text(one: vispec.Engine, prompt: Any, inputs: dict[str, Any]) -> None:
    """Ours is what the model's own `generate` says behind Hugging Face's inputs."""
    # Pixels alone: the seconds between frames, in float64, can fall on the other side of a whole
    # position (27 frames of 4 x 109 / 108 are 109).
    inputs = {k: v.double() if "pixel" in k else v for k, v in inputs.items()}
    out = one.target.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    expected = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert one.generate(prompt, max_new_tokens=12, temperature=0).token_ids == expected


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", ["llava-1.5-7b-hf", "qwen2.5-vl"])
def test_conversations_about_photographs(folders: dict[str, Path], name: str, count: int) -> None:
    one, prompt = engine(folders[name]), asked(photographs(count))
    theirs = one.target.processor.apply_chat_template(
        prompt, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    ours = one.target.encode(prompt)
    same_inputs(ours.inputs, theirs)
    same_text(one, prompt, dict(theirs))


def test_a_published_template_that_takes_strings(folders: dict[str, Path]) -> None:
    one, images = engine(folders["llava-next-video-7b-finetune"]), photographs(1)
    text = f"<s>[INST] <image>\n{WHAT} [/INST]A photograph.</s>[INST] Is it old? [/INST]"
    theirs = one.target.processor(
        images=images, text=[text], return_tensors="pt", add_special_tokens=False
    )
    same_inputs(one.target.encode(asked(images)).inputs, theirs)
    same_text(one, asked(images), dict(theirs))


@needs_torchvision
@needs_torchcodec
@pytest.mark.parametrize("clip", ["sample_demo_1.mp4", "sample_demo_22.mp4"])
def test_a_clip_in_the_frames_that_hugging_face_takes(folders: dict[str, Path], clip: str) -> None:
    one = engine(folders["qwen2.5-vl"])
    prompt = asked(photographs(1), (str(DATA / "video" / "clips" / clip),))
    theirs = one.target.processor.apply_chat_template(
        prompt,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
        processor_kwargs={"do_sample_frames": True, "fps": 2},
    )
    same_inputs(one.target.encode(prompt).inputs, theirs)
    same_text(one, prompt, dict(theirs))


@needs_torchvision
def test_a_clip_where_the_processor_leaves_the_frames_to_its_caller(
    folders: dict[str, Path],
) -> None:
    one = engine(folders["llava-next-video-7b-finetune"])
    clip = str(DATA / "video" / "clips" / "sample_demo_1.mp4")
    ours = one.target.encode(asked([], (clip,))).inputs
    assert ours["pixel_values_videos"].shape[:3] == (1, 8, 3)
    own = {key: value for key, value in ours.items() if key != "attention_mask"}
    same_text(one, asked([], (clip,)), dict(own))
