"""From a conversation to what a model's forward takes: chat template, processor, frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

from jinja2 import TemplateError, UndefinedError
from PIL import Image
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from vispec.errors import CheckpointError, ConversationError, VideoError
from vispec.videos import VideoSource, load_video

FRAMES: Mapping[str, Mapping[str, int]] = {
    "qwen2_vl": {"fps": 2},  # arXiv 2409.12191, section 3.1
    "qwen2_5_vl": {"fps": 2},
    "video_llava": {"num_frames": 8},  # arXiv 2311.10122, section 4.1
    "llava_next_video": {"num_frames": 8},
    "llava_onevision": {"num_frames": 32},  # arXiv 2408.03326, section 3.2
    "internvl": {"num_frames": 8},
    "smolvlm": {"fps": 1, "num_frames": 64},  # arXiv 2504.05299
}
"""How families choose a video's frames whose processors leave that to their caller."""


TORCHVISION = (
    "install the one made for your torch; for its CPU build: pip install torchvision --index-url"
    " https://download.pytorch.org/whl/cpu"
)


def chat_text(processor: Any, messages: Sequence[Mapping[str, Any]], name: str) -> str:
    """Apply a processor's chat template, and ask for an answer.

    Templates of most models with images go through the parts of a message, and see nothing in a
    bare string; others, and those of text models, join strings.

    Args:
        messages: in Hugging Face's format.
        name: of the model, for messages.

    Raises:
        CheckpointError: if there is no chat template.
        ConversationError: if the template refuses the conversation.
    """
    if getattr(processor, "chat_template", None) is None:
        raise CheckpointError(
            name,
            "has no chat template",
            missing=["chat_template.jinja"],
            fix="Set processor.chat_template, or use a version of the checkpoint that has one.",
        )

    def render(form: list[dict[str, Any]]) -> str:
        return str(processor.apply_chat_template(form, add_generation_prompt=True, tokenize=False))

    joined = [_joined(message, processor) for message in messages]
    try:
        if not hasattr(processor, "tokenizer"):
            return render(joined)
        parts = [_parted(message) for message in messages]
        try:
            text = render(parts)
        except (TypeError, UndefinedError):  # it took a list for a string
            return render(joined)
        lists_shown = any(str(message["content"]) in text for message in parts)
        return render(joined) if lists_shown else text
    except (TemplateError, TypeError, KeyError) as error:
        raise ConversationError(
            f"the chat template of '{name}' refuses the conversation ({error})",
            "change its turns, or set another processor.chat_template",
        ) from error


def model_inputs(
    processor: Any,
    text: str,
    images: Sequence[Image.Image],
    videos: Sequence[VideoSource],
    *,
    name: str,
    model_type: str,
    frames: int | None = None,
) -> dict[str, Any]:
    """What a processor makes of text that already has its placeholders, and of what is shown.

    Args:
        frames: how many of each video; the family's own choice by default.

    Raises:
        ConversationError: for images or videos and a text model, or places that do not fit.
        VideoError: for a video that cannot be decoded, or a model that takes none.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if processor is tokenizer:
        if images or videos:
            raise ConversationError(
                f"{len(images) + len(videos)} images and videos were given to '{name}'",
                "it is a text model; ask it without any",
            )
        return dict(tokenizer(text, return_tensors="pt", add_special_tokens=False))
    shown: dict[str, Any] = {}
    if videos:
        sampler = getattr(processor, "video_processor", None)
        if sampler is None:
            parts: list[str] = getattr(type(processor), "get_attributes", list)()
            if any("video" in part for part in parts):
                reason = f"Hugging Face's part of '{name}' for videos needs torchvision"
                raise VideoError("what was given", reason, TORCHVISION)
            raise VideoError(
                "what was given", f"'{name}' takes no videos", "ask about single frames"
            )
        rule = FRAMES.get(model_type, {})
        loaded = [
            load_video(one, lambda facts: wanted_frames(sampler, facts, rule, frames))
            for one in videos
        ]
        shown = {
            "videos": [one.frames for one in loaded],
            "video_metadata": [one.metadata for one in loaded],
            "do_sample_frames": False,
        }
    bos = getattr(tokenizer, "bos_token", None)
    try:
        inputs = processor(
            # One list a conversation: some show several images of one otherwise than one each of
            # several.
            images=[list(images)] if images else None,
            text=[text],
            return_tensors="pt",
            # The template may write the first token itself.
            add_special_tokens=not (bos and text.startswith(bos)),
            **shown,
        )
    except ValueError as error:
        written = any(
            text.count(token) != len(given)
            for kind, given in (("image", images), ("video", videos))
            if (token := getattr(processor, f"{kind}_token", None))
        )
        raise ConversationError(
            f"the processor of '{name}' refuses what is shown ({error})",
            "write no placeholders such as <image> into the text; what is shown has its place"
            " in the conversation's parts"
            if written
            else "show it in another size or shape",
        ) from error
    return dict(inputs)


def wanted_frames(
    sampler: Any, facts: VideoMetadata, rule: Mapping[str, int], frames: int | None = None
) -> Sequence[int]:
    """Which frames of a video a family is shown.

    A clip that is shorter than what is asked for is shown whole, and its last frame again where
    it has fewer than one patch.

    Args:
        sampler: a video processor, whose own rule goes first.
        facts: of the video.
        rule: what the sampler is told where it has none, `num_frames` or `fps`.
        frames: how many, evenly spaced, in place of any rule.
    """
    total = facts.total_num_frames
    if frames is not None:
        return _whole(default_sample_indices_fn(facts, num_frames=min(frames, total)), sampler)
    names = signature(sampler.sample_frames).parameters
    own = {name: getattr(sampler, name, None) for name in names}
    options = {name: value for name, value in own.items() if value is not None}
    if not getattr(sampler, "do_sample_frames", False):
        if not rule.keys() & options.keys():
            options |= rule
        if not options.keys() & {"num_frames", "fps"}:
            return _whole(range(total), sampler)
    if options.get("num_frames"):
        options["num_frames"] = min(options["num_frames"], total)
    try:
        chosen = list(sampler.sample_frames(metadata=facts, **options))
    except ZeroDivisionError:  # less than the frames of one patch
        chosen = []
    return _whole(chosen or range(total), sampler)


def _whole(indices: Iterable[Any], sampler: Any) -> list[int]:
    """At least as many frames as a patch has: the last is shown again."""
    chosen = [int(i) for i in indices]
    lacking = (getattr(sampler, "temporal_patch_size", None) or 1) - len(chosen)
    return chosen + chosen[-1:] * max(0, lacking)


def _parted(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": parts}


def _joined(message: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    """A message as one string; what is shown is named by the processor's own placeholders."""
    words = []
    for part in _parted(message)["content"]:
        place = getattr(processor, f"{part['type']}_token", None)
        words.append(part["text"] if part["type"] == "text" else f"{place}\n" if place else "")
    return {**message, "content": "".join(words)}
