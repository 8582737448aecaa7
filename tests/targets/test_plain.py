"""Images that lie in one piece: where they are in a prompt, and whose they are in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import talking
import tiny
from vispec.errors import ImageError
from vispec.targets import FAMILIES, Target
from vispec.targets.batches import split_batch
from vispec.targets.plain import PlainTarget

X, I = 5, tiny.IMAGE_TOKEN  # noqa: E741 - a picture of a prompt: text and image


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny.target()


def encoded(sizes: list[int]) -> dict[str, Any]:
    """What a vision tower made of images with as many features, each full of its number."""
    features = [torch.full((size, 4), float(i)) for i, size in enumerate(sizes)]
    return {"image": BaseModelOutputWithPooling(pooler_output=features)} if sizes else {}


@pytest.mark.parametrize(
    ("ids", "sizes", "expected"),
    [
        ([X, X], [], [-1, -1]),
        ([X, I, I, X], [2], [-1, 0, 0, -1]),
        ([I, I], [2], [0, 0]),
        ([X, I, I, I, I, X], [2, 2], [-1, 0, 0, 1, 1, -1]),
        ([I, I, X, I, I], [2, 2], [0, 0, -1, 1, 1]),
        # Of different sizes, and one in two spans.
        ([I, I, I, X, I, X], [1, 3], [0, 1, 1, -1, 1, -1]),
        ([I, I, I], [1, 1, 1], [0, 1, 2]),
        # A placeholder without pixels is a token like any other.
        ([X, I, X], [], [-1, -1, -1]),
    ],
)
def test_pictures_are_told_apart_by_their_features(
    target: Target, ids: list[int], sizes: list[int], expected: list[int]
) -> None:
    inputs = {"input_ids": torch.tensor([ids])}
    assert target.image_index(inputs, encoded(sizes)).tolist() == expected


@torch.inference_mode()
def test_an_encoded_prompt_has_nine_places_a_picture() -> None:
    target = talking.target()
    for images in range(4):
        prompt = target.encode("a", [talking.picture(i) for i in range(images)])
        index = target.prefill(prompt, target.new_cache(1, len(prompt)), 0).image_index
        counts = [int((index == i).sum()) for i in range(images)]
        assert counts == [tiny.VISUAL] * images
        places = [i for i, token in enumerate(prompt.ids) if token == tiny.IMAGE_TOKEN]
        assert (index >= 0).nonzero()[:, 0].tolist() == places


def padded(counts: list[int]) -> dict[str, Tensor]:
    """A left-padded batch with `counts` pictures of two tokens each."""
    rows = [[1, *([I, I] * n), *([X] * (i + 1))] for i, n in enumerate(counts)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("counts", [[1], [2, 0, 1], [0, 0, 3], [1, 1], [0, 4, 0, 2, 1]], ids=str)
def test_every_row_of_a_batch_gets_its_own_pictures(target: Target, counts: list[int]) -> None:
    batch = padded(counts)
    shown = encoded([2] * sum(counts))
    rows = split_batch(target, batch["input_ids"], batch | {"mm_encoder_outputs": shown})
    first = 0
    for row, count in enumerate(counts):
        expected = [1, *([I, I] * count), *([X] * (row + 1))]
        assert rows[row]["input_ids"].tolist() == [expected]
        if count:
            own = rows[row]["mm_encoder_outputs"]["image"].pooler_output
            assert [int(f[0, 0]) for f in own] == list(range(first, first + count))
        else:
            assert set(rows[row]) == {"input_ids"}
        first += count


def test_rows_without_any_picture_are_text(target: Target) -> None:
    ids = torch.tensor([[1, X], [1, X + 1]])
    rows = split_batch(target, ids, {"pixel_values": None, "attention_mask": None})
    assert [set(row) for row in rows] == [{"input_ids"}] * 2


def test_pixels_of_several_rows_are_refused_where_nothing_tells_whose_they_are(
    target: Target,
) -> None:
    batch = padded([1, 1])
    pixels = torch.zeros(2, 3, 12, 12)
    with pytest.raises(ImageError, match=r"2 conversations.*'llava'.*one conversation at a time"):
        split_batch(target, batch["input_ids"], batch | {"pixel_values": pixels})
    one = split_batch(target, batch["input_ids"][:1], {"pixel_values": pixels[:1]})
    assert one[0]["pixel_values"].shape == (1, 3, 12, 12)


def test_llava_is_a_plain_family(target: Target) -> None:
    assert isinstance(target, PlainTarget)
    assert FAMILIES["llava"] is PlainTarget
