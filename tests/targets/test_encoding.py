"""Conversations become text as each template wants them, and videos the frames of their family."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

import talking
from vispec.errors import CheckpointError, ConversationError
from vispec.targets.encoding import chat_text, wanted_frames

TURNS = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "what ?"}],
    },
    {"role": "assistant", "content": "a cat"},
    {"role": "user", "content": [{"type": "text", "text": "sure ?"}]},
]


def with_template(template: str | None) -> Any:
    processor = copy.deepcopy(talking.processor())
    processor.chat_template = template
    return processor


JOINING = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '|' }}{% endfor %}"
STRIPPING = "{% for m in messages %}{{ m['role'] }}: {{ m['content'].strip() }}|{% endfor %}"
PRINTING = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}|{% endfor %}"


@pytest.mark.parametrize("template", [JOINING, STRIPPING, PRINTING])
def test_a_template_that_wants_strings_gets_strings_with_the_places_in_them(template: str) -> None:
    text = chat_text(with_template(template), TURNS, "it")
    assert text == "user: <image>\nwhat ?|assistant: a cat|user: sure ?|"


def test_a_template_that_goes_through_parts_gets_parts() -> None:
    text = chat_text(talking.processor(), TURNS, "it")
    assert text.count("<image>") == 1
    assert text.index("<image>") < text.index("what ?") < text.index("a cat")
    assert "{" not in text


def test_a_tokenizers_template_joins_strings() -> None:
    tokenizer = copy.deepcopy(talking.tokenizer())
    tokenizer.chat_template = JOINING
    turns = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert chat_text(tokenizer, turns, "it") == "user: a|"


def test_what_a_template_refuses_is_said_in_its_words() -> None:
    strict = "{{ raise_exception('turns must alternate') }}"
    with pytest.raises(ConversationError, match=r"'it' refuses.*turns must alternate"):
        chat_text(with_template(strict), TURNS, "it")


def test_without_a_template_the_fix_is_told() -> None:
    with pytest.raises(CheckpointError, match="no chat template"):
        chat_text(with_template(None), TURNS, "it")


# --- Frames ---------------------------------------------------------------------------------------


def facts(total: int, fps: float = 10.0) -> VideoMetadata:
    return VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps)


def sampler(**own: Any) -> Any:
    """As Hugging Face's: its own wishes are attributes, and too many frames are refused."""

    def sample_frames(metadata: Any, num_frames: Any = None, fps: Any = None, **_: Any) -> Any:
        return default_sample_indices_fn(metadata, num_frames=num_frames, fps=fps)

    return SimpleNamespace(sample_frames=sample_frames, **own)


@pytest.mark.parametrize(
    ("own", "rule", "asked", "total", "expected"),
    [
        ({"do_sample_frames": True, "num_frames": 4}, {"num_frames": 2}, None, 40, [0, 10, 20, 30]),
        ({"do_sample_frames": True, "fps": 2}, {}, None, 20, [0, 5, 10, 15]),
        ({"do_sample_frames": False}, {"num_frames": 4}, None, 40, [0, 10, 20, 30]),
        ({"do_sample_frames": False}, {"fps": 1}, None, 30, [0, 10, 20]),
        ({"do_sample_frames": False, "num_frames": 2}, {"num_frames": 4}, None, 40, [0, 20]),
        ({"do_sample_frames": False}, {}, None, 3, [0, 1, 2]),
        ({"do_sample_frames": False}, {"num_frames": 8}, None, 3, [0, 1, 2]),
        ({"do_sample_frames": True, "num_frames": 32}, {}, None, 3, [0, 1, 2]),
        ({"do_sample_frames": True, "fps": 2}, {"fps": 2}, 4, 40, [0, 10, 20, 30]),
        ({"do_sample_frames": False}, {"num_frames": 2}, 9, 3, [0, 1, 2]),
    ],
)
def test_a_family_is_shown_the_frames_it_wants(
    own: dict[str, Any],
    rule: dict[str, int],
    asked: int | None,
    total: int,
    expected: list[int],
) -> None:
    assert list(wanted_frames(sampler(**own), facts(total), rule, asked)) == expected


def test_a_clip_of_less_than_a_patch_is_shown_whole() -> None:
    def halves(metadata: Any, fps: Any = None) -> Any:
        count = metadata.total_num_frames // 2 * 2
        return range(0, metadata.total_num_frames, metadata.total_num_frames // count)

    one = SimpleNamespace(sample_frames=halves, do_sample_frames=True, fps=2)
    assert list(wanted_frames(one, facts(1), {})) == [0]
    # Qwen's processors refuse less than one patch.
    one.temporal_patch_size = 2
    assert list(wanted_frames(one, facts(1), {})) == [0, 0]
    assert list(wanted_frames(one, facts(30), {}, frames=1)) == [0, 0]
    assert list(wanted_frames(one, facts(30), {}, frames=3)) == [0, 10, 20]
