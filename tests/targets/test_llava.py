"""LLaVA's pictures: where they lie in a prompt, and whose they are in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import talking
import tiny
from vispec.targets import Target
from vispec.targets.llava import LlavaTarget

X, I = 5, tiny.IMAGE_TOKEN  # noqa: E741 - a picture of a prompt: text and image


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny.target()


def index(target: Target, ids: list[int], images: int) -> list[int]:
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    if images:
        inputs["pixel_values"] = torch.zeros(images, 3, 12, 12)
    return target.image_index(inputs).tolist()


@pytest.mark.parametrize(
    ("ids", "images", "expected"),
    [
        ([X, X], 0, [-1, -1]),
        ([X, I, I, X], 1, [-1, 0, 0, -1]),
        ([I, I], 1, [0, 0]),
        ([X, I, I, I, I, X], 2, [-1, 0, 0, 1, 1, -1]),
        ([I, I, X, I, I], 2, [0, 0, -1, 1, 1]),
        ([I, I, I, X, I, I, I, X], 2, [0, 0, 0, -1, 1, 1, 1, -1]),
        ([I, I, I], 3, [0, 1, 2]),
        # A placeholder without pixels is a token like any other.
        ([X, I, X], 0, [-1, -1, -1]),
    ],
)
def test_pictures_are_told_apart_even_without_text_between_them(
    target: Target, ids: list[int], images: int, expected: list[int]
) -> None:
    assert index(target, ids, images) == expected


def test_an_encoded_prompt_has_nine_places_a_picture() -> None:
    target = talking.target()
    for images in range(4):
        prompt = target.encode("a", [talking.picture(i) for i in range(images)])
        counts = [int((prompt.image_index == i).sum()) for i in range(images)]
        assert counts == [tiny.VISUAL] * images
        places = [i for i, token in enumerate(prompt.ids) if token == tiny.IMAGE_TOKEN]
        assert (prompt.image_index >= 0).nonzero()[:, 0].tolist() == places


def padded(counts: list[int]) -> dict[str, Tensor]:
    """A left-padded batch with `counts` pictures of two tokens each, numbered by their pixels."""
    rows = [[1, *([I, I] * n), *([X] * (i + 1))] for i, n in enumerate(counts)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    pixels = torch.arange(sum(counts)).view(-1, 1, 1, 1).expand(-1, 3, 12, 12)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


COUNTS = [[1], [2, 0, 1], [0, 0, 3], [1, 1], [0, 4, 0, 2, 1]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_every_row_of_a_batch_gets_its_own_pictures(target: Target, counts: list[int]) -> None:
    batch = padded(counts)
    rows = target.rows(batch["input_ids"], batch)
    first = 0
    for row, count in enumerate(counts):
        expected = [1, *([I, I] * count), *([X] * (row + 1))]
        assert rows[row]["input_ids"].tolist() == [expected]
        if count:
            numbers = rows[row]["pixel_values"][:, 0, 0, 0].tolist()
            assert numbers == list(range(first, first + count))
        else:
            assert set(rows[row]) == {"input_ids"}
        first += count


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_pictures_that_generate_has_encoded_already_are_split_the_same_way(
    target: Target, counts: list[int]
) -> None:
    batch = padded(counts)
    features = [torch.full((2, 4), float(i)) for i in range(sum(counts))]
    encoded = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    rows = target.rows(batch["input_ids"], batch | {"mm_encoder_outputs": encoded})
    first = 0
    for row, count in enumerate(counts):
        if count:
            own = rows[row]["mm_encoder_outputs"]["image"].pooler_output
            assert [int(f[0, 0]) for f in own] == list(range(first, first + count))
            assert "pixel_values" not in rows[row]
        else:
            assert set(rows[row]) == {"input_ids"}
        first += count


def test_rows_without_any_picture_are_text(target: Target) -> None:
    ids = torch.tensor([[1, X], [1, X + 1]])
    rows = target.rows(ids, {"pixel_values": None, "attention_mask": None})
    assert [set(row) for row in rows] == [{"input_ids"}] * 2


def test_llava_is_the_family_of_llava_checkpoints(target: Target) -> None:
    assert isinstance(target, LlavaTarget)
    assert "llava" in LlavaTarget.model_types
