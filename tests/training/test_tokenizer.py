"""The target's tokenizer loses nothing, and training sees exactly what a chat will send."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaProcessor

from vispec.training import scenes
from vispec.training.conversations import IGNORED, Encoder, ImageBatches, Row
from vispec.training.image_cache import PATCH_CLASSES, ImageCache
from vispec.training.pretrain import TargetShape, build_target, normalise
from vispec.training.tokenizer import build_processor, train_tokenizer


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> LlavaProcessor:
    texts = [f"{t.question} {t.answer}" for seed in range(60) for t in scenes.dialogue(seed).turns]
    folder: Path = tmp_path_factory.mktemp("processor")
    build_processor(train_tokenizer(texts, 600)).save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["A red circle.", 'It says "QX7K 1942".', "naïve 漢字 🐈 Привет", "  two\n\nlines\t"]
)
def test_any_text_round_trips(processor: LlavaProcessor, text: str) -> None:
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.tokenizer.decode(ids) == text


def test_every_digit_is_one_token(processor: LlavaProcessor) -> None:
    assert len(processor.tokenizer.encode("2026", add_special_tokens=False)) == 4


def test_an_image_becomes_one_token_a_patch(processor: LlavaProcessor) -> None:
    image = scenes.scene(1, "vqa").image.resize((320, 100))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (inputs["input_ids"] == image_id).sum() == 144
    assert inputs["pixel_values"].shape == (1, 3, 192, 192)


def test_two_images_and_two_turns_render_as_llava_does(processor: LlavaProcessor) -> None:
    picture, text = {"type": "image"}, {"type": "text", "text": "Compare them."}
    messages = [
        {"role": "user", "content": [picture, picture, text]},
        {"role": "assistant", "content": [{"type": "text", "text": "One is red."}]},
        {"role": "user", "content": "Which?"},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<s>USER: <image>\n <image>\nCompare them. "
        "ASSISTANT:\nOne is red.</s>USER: Which? ASSISTANT:\n"
    )


def test_training_conversations_equal_rendered_chats(processor: LlavaProcessor) -> None:
    found = scenes.dialogue(4)
    encoder = Encoder(processor.tokenizer, 144)
    row = encoder.conversation(encoder.turns([found.turns])[0], True, longest=10_000)
    messages = []
    for i, turn in enumerate(found.turns):
        content = [{"type": "image", "image": found.image}] if i == 0 else []
        content.append({"type": "text", "text": turn.question})
        messages.append({"role": "user", "content": content})
        answer = [{"type": "text", "text": turn.answer}]
        messages.append({"role": "assistant", "content": answer})
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert row.ids == inputs["input_ids"][0]
    taught = processor.tokenizer.decode([label for label in row.labels if label != IGNORED])
    assert taught == "".join(f"{turn.answer}</s>" for turn in found.turns)


def test_what_is_quoted_is_spelled(processor: LlavaProcessor) -> None:
    def tokens(text: str) -> list[str]:
        ids = processor.tokenizer.encode(text, add_special_tokens=False)
        return [processor.tokenizer.decode([i]) for i in ids]

    text = 'It says "circle shape". There is a circle.'
    assert "".join(tokens(text)) == text
    assert [*"circle shape"] == tokens(text)[tokens(text).index(' "') + 1 :][:12]
    assert " circle" in tokens(text)
    assert " circle" in tokens('an odd " circle')


def test_questions_that_are_packed_see_what_they_would_see_alone(
    processor: LlavaProcessor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    shape = TargetShape(600, 32, 2, 48, 2, 1, 48)
    tokenizer = processor.tokenizer
    tokens = {"bos": 0, "eos": 1, "pad": 2, "image": tokenizer.convert_tokens_to_ids("<image>")}
    model = build_target(shape, tokens, 2).double().eval()
    encoder = Encoder(tokenizer, 144)
    found = scenes.dialogue(4, "vqa")
    turns = encoder.turns([found.turns])[0][:3]
    images = np.array(found.image)[None]

    def hidden(row: Row) -> torch.Tensor:
        batch = encoder.collate([row], images)
        out = model.model(
            input_ids=batch.ids,
            pixel_values=normalise(batch.images).double(),
            position_ids=batch.positions(),
            attention_mask=batch.mask(torch.float64),
        ).last_hidden_state[0]
        return out[: len(row.ids)]

    packed_row = encoder.questions(turns, longest=10_000)
    packed, start = hidden(packed_row), len(encoder.opening)
    for turn in turns:
        alone_row = encoder.questions([turn], longest=10_000)
        alone = hidden(alone_row)[len(encoder.opening) :]
        there = packed[start : start + len(alone)]
        torch.testing.assert_close(there, alone, rtol=0, atol=1e-10)
        labels = packed_row.labels[start : start + len(alone) - 1]
        assert labels == alone_row.labels[len(encoder.opening) : -1]
        start += len(alone)
    assert start == len(packed)


def test_visual_tokens_are_labelled_with_what_their_patches_show(
    processor: LlavaProcessor, tmp_path: Path
) -> None:
    cache = ImageCache.build(tmp_path, range(4))
    encoder = Encoder(processor.tokenizer, 144)
    batches = ImageBatches(encoder, cache, range(4), batch=4, longest=60, seed=0)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    said: dict[tuple[int, int], set[str]] = {}
    for batch in map(batches, range(40)):
        assert batch.images is not None
        for ids, labels, pixels in zip(batch.ids, batch.labels, batch.images, strict=True):
            row = next(i for i in range(4) if (cache.pixels[i] == pixels.numpy()).all())
            for place, label in enumerate(labels[ids == image].tolist()):
                text = "" if label == IGNORED else processor.tokenizer.decode([label])
                said.setdefault((row, place), set()).add(text)
    for (row, place), texts in said.items():
        facts = scenes.dialogue(row).facts
        name = PATCH_CLASSES[cache.glyphs[row][place]]
        if not name:
            assert texts == {""}
        elif len(name) == 1:
            written = [*facts.written, '".']
            behind = {b for a, b in pairwise(written) if a == name}
            assert texts <= {name, f" {facts.ink}", *behind, ""}
            assert name in texts
        else:
            meant = [shape for shape in facts.shapes if shape.form == name]
            words = {
                w for shape in meant for w in (name, shape.size, shape.colour, *shape.place.split())
            }
            assert texts - {""} <= {f" {word}" for word in words}
            assert texts - {""}
