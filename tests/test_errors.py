"""Messages name the offending value and the fix."""

from __future__ import annotations

import inspect
import pickle

import pytest

from vispec import errors
from vispec.errors import (
    CheckpointError,
    ConversationError,
    DivergedError,
    DraftMismatchError,
    ImageError,
    PromptTooLongError,
    SamplingError,
    SettingsError,
    UnsupportedFamilyError,
    UnsupportedLogitsProcessorError,
    VideoError,
    VispecError,
)

EXAMPLES = [
    ImageError.unusable("cat.png", "it ends before the picture does", "copy it again"),
    VideoError("cat.mp4", "it has no frames", "give a video with some"),
    ConversationError("message 3 has the role 'cat'", "it must be one of user, assistant"),
    CheckpointError("runs/draft", missing=["fc.weight"], unexpected=["lm_head.weight"]),
    CheckpointError.unavailable("someone/model", ["config.json"], "offline mode is on"),
    DraftMismatchError("d", "t", ["draft expects hidden size 4096, target 't' has 5120"]),
    UnsupportedFamilyError("blip", ["llava", "qwen2_5_vl"]),
    PromptTooLongError(5000, 4096, image_tokens=2880),
    SamplingError("temperature", -1.0, "a number of at least 0"),
    DivergedError("the loss is nan at step 3; lower the learning rate (0.1)"),
    SettingsError("stage 'text' learns from 'txt'", "Known are text, heldout."),
    UnsupportedLogitsProcessorError("Watermark", "it keeps state between calls"),
]


def test_every_error_of_the_module_has_an_example_here() -> None:
    kinds = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, VispecError) and kind is not VispecError
    }
    assert kinds == {type(example) for example in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_are_value_errors_of_one_family_and_survive_pickling(error: VispecError) -> None:
    assert isinstance(error, VispecError)
    assert isinstance(error, ValueError)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize(
    ("error", "words"),
    list(
        zip(
            EXAMPLES,
            [
                ["cat.png", "ends before", "copy it again"],
                ["cat.mp4", "no frames", "with some"],
                ["message 3", "'cat'", "user, assistant"],
                ["runs/draft", "missing (1)", "fc.weight", "unexpected (1)", "lm_head.weight"],
                ["someone/model", "config.json", "offline mode is on", "path of a folder"],
                ["'d'", "'t'", "4096", "5120", "pass the draft that belongs to this target"],
                ["blip", "llava, qwen2_5_vl", "src/vispec/targets"],
                ["5000", "2880", "4096", "fewer or smaller images"],
                ["temperature", "-1.0", "at least 0"],
                ["step 3", "learning rate", "0.1"],
                ["stage 'text'", "'txt'", "Known are text, heldout."],
                ["Watermark", "keeps state", "speculate=False"],
            ],
            strict=True,
        )
    ),
)
def test_messages_name_the_value_and_the_fix(error: VispecError, words: list[str]) -> None:
    for word in words:
        assert word in str(error)


def test_every_differing_tensor_is_listed() -> None:
    error = CheckpointError.tensors(
        "draft",
        found={"a": [2, 3], "b": [4], "z": [1]},
        expected={"a": [2, 5], "b": [4], "c": [7]},
    )
    assert error is not None
    assert error.missing == ("c",)
    assert error.unexpected == ("z",)
    assert error.misshapen == ("a: found [2, 3], expected [2, 5]",)
    for name in ("c", "z", "a: found [2, 3], expected [2, 5]"):
        assert f"\n  {name}" in str(error)


def test_equal_tensor_lists_are_no_error() -> None:
    shapes = {"a": [2, 3]}
    assert CheckpointError.tensors("draft", found=shapes, expected={"a": (2, 3)}) is None
