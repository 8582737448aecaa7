"""One changed argument of Hugging Face's `generate`, and the same tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextStreamer,
)

import talking
import tiny
import vispec
from vispec.checkpoints import vispec as vispec_format
from vispec.decoding.tree import TreeShape
from vispec.errors import DraftMismatchError, SamplingError, UnsupportedFamilyError

COUNTS = (1, 0, 2, 3, 0)
"""Pictures in each row of a batch."""
SHAPE = TreeShape(12, 5, 4)


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return tiny.llava()


def batch(seed: int = 0, counts: tuple[int, ...] = COUNTS) -> dict[str, Tensor]:
    """Rows of different lengths and numbers of pictures, padded on the left."""
    draw, texts, images = random.Random(seed), [], []
    for row, count in enumerate(counts):
        question = "".join(draw.choice(talking.LETTERS + " ") for _ in range(draw.randint(1, 12)))
        texts.append("<s>user:" + " <image>" * count + f" {question}\nassistant:")
        images += [talking.picture(100 * seed + 10 * row + i) for i in range(count)]
    made = talking.processor()(images=images or None, text=texts, padding=True, return_tensors="pt")
    inputs = dict(made)
    if images:
        inputs["pixel_values"] = inputs["pixel_values"].double()
    return inputs


def proposers() -> dict[str, Any]:
    return {
        "vispec": tiny.draft(),
        "eagle": tiny.draft(queries=None),
        "none": None,
    }


def forbid_by_row(row: int, ids: Tensor) -> list[int]:
    """Other tokens for every row of a batch, which a row's own number alone can tell."""
    return [3 + row, 9 + row, 20 + (len(ids) + row) % 7, 40]


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "several ends": {"eos_token_id": [2, 16, 23]},
    "no end": {"eos_token_id": -1},
    "a shortest length": {"eos_token_id": [2, 16, 23], "min_new_tokens": 12},
    "no repeated pairs": {"no_repeat_ngram_size": 2},
    "a repetition penalty": {"repetition_penalty": 1.7},
    "a penalty on the prompt": {"encoder_repetition_penalty": 1.5},
    "forced end": {"forced_eos_token_id": 2, "eos_token_id": 2},
    "suppressed": {"suppress_tokens": [46, 30, 9], "begin_suppress_tokens": [16, 23]},
    "bad words": {"bad_words_ids": [[46], [30, 23]]},
    "biased": {"sequence_bias": [[[5], 3.0], [[7, 8], 9.0]]},
    "allowed by row": {"prefix_allowed_tokens_fn": forbid_by_row},
    "own processor": {"logits_processor": LogitsProcessorList([NoRepeatNGramLogitsProcessor(3)])},
    "many": {"eos_token_id": [16, 23], "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_greedy_tokens_are_generates_own_in_padded_batches(
    model: LlavaForConditionalGeneration, name: str
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False} | OPTIONS[name]
    others = [(0,), (2,), (0, 0, 0), (1, 1)] if name in ("nothing", "many") else [(1,)]
    for seed, counts in enumerate([COUNTS, *others]):
        inputs = batch(seed, counts)
        expected = model.generate(**inputs, **options)
        assert expected.shape[1] > inputs["input_ids"].shape[1]
        for max_batch, (proposer, draft) in enumerate(proposers().items(), 2):
            loop = vispec.speculative(draft, SHAPE, max_batch=max_batch)
            found = model.generate(**inputs, **options, custom_generate=loop)
            assert torch.equal(found, expected), (proposer, counts)


class EndsWith(StoppingCriteria):
    """Stops every row that has said a token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return input_ids[:, -1] == self.token


def test_stopping_criteria_of_the_user_end_each_row(
    model: LlavaForConditionalGeneration,
) -> None:
    inputs = batch()
    criteria = StoppingCriteriaList([EndsWith(30), EndsWith(9)])
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": 2}
    expected = model.generate(**inputs, **options, stopping_criteria=criteria)
    loop = vispec.speculative(tiny.draft(), SHAPE)
    found = model.generate(**inputs, **options, stopping_criteria=criteria, custom_generate=loop)
    assert torch.equal(found, expected)
    assert (expected == 0)[:, inputs["input_ids"].shape[1] :].any(), "no row ended early"


def test_stop_strings_end_each_row_where_they_end_generates(
    model: LlavaForConditionalGeneration,
) -> None:
    inputs, tokenizer, stop = batch(), talking.tokenizer(), ["a", "th", "he"]
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}
    expected = model.generate(**inputs, **options, stop_strings=stop, tokenizer=tokenizer)
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, stop)])
    loop = vispec.speculative(tiny.draft(), SHAPE)
    found = model.generate(**inputs, **options, stopping_criteria=criteria, custom_generate=loop)
    assert torch.equal(found, expected)


def test_rows_without_a_padding_token_are_filled_as_generate_fills_them() -> None:
    model = tiny.llava()
    model.generation_config.pad_token_id = None
    model.generation_config.eos_token_id = [16, 23, 2]
    inputs = batch()
    expected = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    assert (expected[:, -1] == 16).any()
    loop = vispec.speculative(tiny.draft(), SHAPE)
    found = model.generate(**inputs, max_new_tokens=30, do_sample=False, custom_generate=loop)
    assert torch.equal(found, expected)


def test_a_dictionary_is_returned_where_one_is_asked_for(
    model: LlavaForConditionalGeneration,
) -> None:
    inputs = batch()
    options: dict[str, Any] = {"max_new_tokens": 9, "return_dict_in_generate": True}
    expected = model.generate(**inputs, **options, do_sample=False)
    loop = vispec.speculative(tiny.draft(), SHAPE)
    found = model.generate(**inputs, **options, do_sample=False, custom_generate=loop)
    assert torch.equal(found.sequences, expected.sequences)
    assert type(found) is type(expected)


def test_a_generation_config_and_the_models_own_are_honoured() -> None:
    model = tiny.llava()
    model.generation_config.update(repetition_penalty=1.4, eos_token_id=[16, 23], max_new_tokens=14)
    inputs = batch(1)
    loop = vispec.speculative(tiny.draft(), SHAPE)
    before = model.generation_config.to_dict()
    for options in ({}, {"generation_config": GenerationConfig(max_length=60, pad_token_id=4)}):
        expected = model.generate(**inputs, **options)
        assert torch.equal(model.generate(**inputs, **options, custom_generate=loop), expected)
    assert model.generation_config.to_dict() == before


class Heard(TextStreamer):
    """Remembers what it was given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(talking.tokenizer(), **options)
        self.tokens: list[int] = []
        self.text, self.ended = "", False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.ended |= stream_end


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_a_streamer_hears_what_it_hears_from_generate(
    model: LlavaForConditionalGeneration, skip_prompt: bool
) -> None:
    inputs = batch(2, (1,))
    options: dict[str, Any] = {"max_new_tokens": 25, "do_sample": False, "eos_token_id": -1}
    heard = [Heard(skip_prompt=skip_prompt, skip_special_tokens=True) for _ in range(2)]
    expected = model.generate(**inputs, **options, streamer=heard[0])
    loop = vispec.speculative(tiny.draft(), SHAPE)
    found = model.generate(**inputs, **options, stream_to=heard[1], custom_generate=loop)
    assert torch.equal(found, expected)
    assert heard[0].tokens == heard[1].tokens == expected[0].tolist()
    assert heard[0].text == heard[1].text
    assert heard[1].ended


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6, "top_k": 7},
    {"temperature": 1.4, "top_p": 0.8, "repetition_penalty": 1.2},
    {"min_p": 0.05, "num_return_sequences": 3},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_samples_repeat_under_a_manual_seed_with_any_draft_and_none(
    model: LlavaForConditionalGeneration, sampling: dict[str, Any]
) -> None:
    inputs = batch(4)

    def sample(seed: int, draft: Any, max_batch: int = 8) -> Tensor:
        torch.manual_seed(seed)
        loop = vispec.speculative(draft, SHAPE, max_batch=max_batch)
        return model.generate(
            **inputs, max_new_tokens=15, do_sample=True, **sampling, custom_generate=loop
        )

    expected = sample(7, None)
    assert torch.equal(sample(7, None), expected)
    for max_batch in (1, 3, 8):
        assert torch.equal(sample(7, tiny.draft(), max_batch), expected)
    assert torch.equal(sample(7, tiny.draft(queries=None)), expected)
    other = sample(8, tiny.draft())
    assert other.shape != expected.shape or not torch.equal(other, expected)
    rows = [tuple(row.tolist()) for row in expected]
    assert len(set(rows)) == len(rows) == len(COUNTS) * sampling.get("num_return_sequences", 1)


def test_samples_move_on_with_the_random_state(model: LlavaForConditionalGeneration) -> None:
    inputs, loop = batch(4), vispec.speculative(tiny.draft(), SHAPE)
    torch.manual_seed(1)
    first, second = (
        model.generate(**inputs, max_new_tokens=15, do_sample=True, custom_generate=loop)
        for _ in range(2)
    )
    assert first.shape != second.shape or not torch.equal(first, second)


REFUSED: dict[str, Any] = {
    "num_beams": 2,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_loop_does_not_do_is_refused_by_name(
    model: LlavaForConditionalGeneration, name: str
) -> None:
    loop = vispec.speculative(tiny.draft(), SHAPE)
    with pytest.raises(SamplingError, match=name):
        model.generate(**batch(), max_new_tokens=4, custom_generate=loop, **{name: REFUSED[name]})


def test_a_streamer_for_several_rows_is_refused_by_name(
    model: LlavaForConditionalGeneration,
) -> None:
    loop = vispec.speculative(tiny.draft(), SHAPE)
    with pytest.raises(SamplingError, match="stream_to is 'Heard'; it must be absent"):
        model.generate(
            **batch(0, (0, 0)), custom_generate=loop, stream_to=Heard(), max_new_tokens=3
        )


def test_a_used_cache_is_refused_by_name(model: LlavaForConditionalGeneration) -> None:
    inputs = batch(0, (0,))
    with torch.inference_mode():
        past = model(**inputs, use_cache=True).past_key_values
    longer = {"input_ids": torch.cat([inputs["input_ids"], torch.tensor([[5, 6]])], 1)}
    loop = vispec.speculative(tiny.draft(), SHAPE)
    with pytest.raises(SamplingError, match="past_key_values"):
        model.generate(**longer, past_key_values=past, custom_generate=loop, max_new_tokens=3)


def test_embeddings_in_place_of_tokens_are_refused_by_name(
    model: LlavaForConditionalGeneration,
) -> None:
    embeds = model.get_input_embeddings()(torch.tensor([[1, 4, 5]]))
    loop = vispec.speculative(tiny.draft(), SHAPE)
    with pytest.raises(SamplingError, match="inputs_embeds"):
        model.generate(inputs_embeds=embeds, custom_generate=loop, max_new_tokens=3)


def test_a_draft_from_a_folder_brings_its_tree_and_must_fit(
    model: LlavaForConditionalGeneration, tmp_path: Path
) -> None:
    vispec_format.write(tiny.draft(), tmp_path / "fits", tree={"size": 7, "depth": 3, "width": 2})
    inputs = batch()
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    for name in (tmp_path / "fits", str(tmp_path / "fits")):
        loop = vispec.speculative(name)
        for _ in range(2):  # the second call finds the draft loaded
            found = model.generate(
                **inputs, max_new_tokens=12, do_sample=False, custom_generate=loop
            )
            assert torch.equal(found, expected)
    other = tiny.llava(hidden_size=48)
    with pytest.raises(DraftMismatchError, match="32"):
        other.generate(**inputs, max_new_tokens=3, custom_generate=loop)
    with pytest.raises(DraftMismatchError, match="48"):
        other.generate(**inputs, max_new_tokens=3, custom_generate=vispec.speculative(tiny.draft()))


def test_one_loop_serves_several_models() -> None:
    loop = vispec.speculative(tiny.draft(), SHAPE)
    inputs = batch()
    for seed in (0, 1, 0):
        model = tiny.llava(seed=seed)
        expected = model.generate(**inputs, max_new_tokens=9, do_sample=False)
        found = model.generate(**inputs, max_new_tokens=9, do_sample=False, custom_generate=loop)
        assert torch.equal(found, expected)


def test_an_unsupported_model_is_told_which_are_supported() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)
    ids = torch.tensor([[1, 2]])
    with pytest.raises(UnsupportedFamilyError, match="llava"):
        GPT2LMHeadModel(config).generate(
            ids, custom_generate=vispec.speculative(None), max_new_tokens=2
        )
