"""What may be asked for, what Hugging Face would make of it, and noise that can be repeated."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import tiny
from table import chi_square
from vispec.decoding.sampling import (
    Chooser,
    KeyedNoise,
    Sampling,
    gumbel,
    process_rows,
    uniform,
)
from vispec.errors import SamplingError

# --- Wishes ---------------------------------------------------------------------------------------

NOT_NUMBERS: list[Any] = ["0.5", True, False, math.nan, math.inf, -math.inf, -1, -0.5, [1], b"1"]
WRONG: dict[str, list[Any]] = {
    "max_new_tokens": [*NOT_NUMBERS, 0, 1.0, 2.5],
    "temperature": [*NOT_NUMBERS, 1e7],
    "top_k": [*NOT_NUMBERS, 1.0, 2.5],
    "top_p": [*NOT_NUMBERS, 0, 0.0, 1.01, 2],
    "min_p": [*NOT_NUMBERS, 1.01, 2],
    "repetition_penalty": [*NOT_NUMBERS, 0, 0.0],
    "seed": [*NOT_NUMBERS, None, 2**63, 1.0],
    "stop": [("a", ""), "", ("a", 1), (None,), 3, None, b"end", ("a", b"b")],
    "ignore_eos": ["no", 1, 0, None],
}
RIGHT: dict[str, list[Any]] = {
    "max_new_tokens": [None, 1, 10**6],
    "temperature": [None, 0, 0.0, 1, 2, 0.01, 100.0],
    "top_k": [None, 0, 1, 50],
    "top_p": [None, 1e-6, 0.5, 1, 1.0],
    "min_p": [None, 0, 0.0, 0.1, 1],
    "repetition_penalty": [None, 0.5, 1, 2],
    "seed": [0, 1, 2**63 - 1],
    "stop": [(), "end", ("a", "b"), ["a"]],
    "ignore_eos": [True, False],
}


def test_every_wish_is_in_both_tables() -> None:
    assert set(WRONG) == set(RIGHT) == set(Sampling.names())


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_value_out_of_range_is_refused_with_its_name_the_value_and_the_range(
    name: str, value: object
) -> None:
    with pytest.raises(SamplingError) as error:
        Sampling(**{name: value})
    assert error.value.name == name
    message = str(error.value)
    assert message.startswith(f"{name} is {error.value.value!r}; it must be ")
    assert len(message.partition("must be ")[2]) > 3


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in RIGHT.items() for value in values]
)
def test_a_value_in_range_reaches_the_models_own_processors(name: str, value: object) -> None:
    """Numbers may be whole: transformers itself wants floats for some."""
    wishes = Sampling(**({"temperature": 0.5} | {name: value}))  # type: ignore[arg-type]
    config = wishes.over(GenerationConfig())
    tiny.target().processors(config, prompt_length=4, limit=3)


def test_a_single_stop_string_is_a_tuple_of_one() -> None:
    assert Sampling(stop="end").stop == ("end",)  # type: ignore[arg-type]
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


# --- Wishes over a checkpoint's configuration -----------------------------------------------------

CHECKPOINT = {
    "do_sample": True,
    "temperature": 0.2,
    "top_p": 0.7,
    "top_k": 12,
    "repetition_penalty": 1.3,
    "eos_token_id": [2, 16, 23],
}


def test_without_wishes_the_checkpoint_decides() -> None:
    config = Sampling().over(GenerationConfig(**CHECKPOINT))
    for name, value in CHECKPOINT.items():
        assert getattr(config, name) == value


def test_wishes_win_over_the_checkpoint_and_leave_it_as_it_was() -> None:
    checkpoint = GenerationConfig(**CHECKPOINT)
    before = checkpoint.to_dict()
    wishes = {"temperature": 0.9, "top_p": 0.5, "top_k": 3, "repetition_penalty": 2.0, "min_p": 0.1}
    config = Sampling(**wishes).over(checkpoint)  # type: ignore[arg-type]
    assert config.do_sample
    for name, value in wishes.items():
        assert getattr(config, name) == value
    assert config.eos_token_id == [2, 16, 23]
    assert checkpoint.to_dict() == before


def test_temperature_zero_turns_a_checkpoints_sampling_off_but_not_its_penalty() -> None:
    config = Sampling(temperature=0).over(GenerationConfig(**CHECKPOINT))
    assert not config.do_sample
    processors = tiny.target().processors(config, 4, 3)
    assert [type(p) for p in processors] == [RepetitionPenaltyLogitsProcessor]


def test_a_temperature_turns_a_greedy_checkpoints_sampling_on() -> None:
    config = Sampling(temperature=0.5).over(GenerationConfig(do_sample=False))
    assert config.do_sample
    assert config.temperature == 0.5


def test_a_wish_can_turn_each_of_the_checkpoints_warpers_off() -> None:
    wishes = Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
    config = wishes.over(GenerationConfig(**CHECKPOINT))
    assert not tiny.target().processors(config, 4, 3)


@pytest.mark.parametrize("beams", [2, 5])
def test_a_checkpoint_that_wants_beams_is_refused_by_name(beams: int) -> None:
    with pytest.raises(SamplingError, match=f"num_beams is {beams}; it must be 1"):
        Sampling().over(GenerationConfig(num_beams=beams))


class Nothing(LogitsProcessor):
    """A processor of the user's own."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores


@pytest.mark.parametrize(
    "wishes",
    [{}, {"temperature": 0}, {"temperature": 2, "top_k": 3}, {"top_p": 0.5, "min_p": 0.1}],
)
def test_processors_are_those_that_generate_itself_would_build(wishes: dict[str, Any]) -> None:
    checkpoint = GenerationConfig(**CHECKPOINT, no_repeat_ngram_size=3, min_length=6)
    built: list[Any] = []

    def look(model: Any, input_ids: Tensor, logits_processor: Any, **rest: Any) -> Tensor:
        built.extend(logits_processor)
        return input_ids

    target = tiny.wrap(tiny.llava(), None)
    config = Sampling(**wishes).over(checkpoint)
    target.model.generation_config = checkpoint
    target.model.generate(
        torch.tensor([[1, 4, 5, 6]]),
        generation_config=config,
        max_new_tokens=3,
        logits_processor=LogitsProcessorList([Nothing()]),
        custom_generate=look,
    )
    ours = target.processors(config, 4, 3, LogitsProcessorList([Nothing()]))
    assert [type(p) for p in ours] == [type(p) for p in built]
    for mine, theirs in zip(ours, built, strict=True):
        assert repr(vars(mine)) == repr(vars(theirs))


def test_nothing_is_processed_that_neither_checkpoint_nor_request_asked_for() -> None:
    """`generate` would silently take the 50 likeliest tokens; sampling here is of all of them."""
    config = Sampling(temperature=1.0).over(GenerationConfig())
    assert not tiny.target().processors(config, 4, 3)


# --- Processing rows of a batch -------------------------------------------------------------------


def some_processors(draw: random.Random) -> LogitsProcessorList:
    made: list[Any] = []
    if draw.random() < 0.4:
        made.append(RepetitionPenaltyLogitsProcessor(draw.choice((1.2, 3.0))))
    if draw.random() < 0.3:
        made.append(NoRepeatNGramLogitsProcessor(2))
    if draw.random() < 0.7:
        made.append(TemperatureLogitsWarper(draw.choice((0.3, 1.7))))
    if draw.random() < 0.4:
        made.append(TopKLogitsWarper(draw.choice((2, 5))))
    if draw.random() < 0.4:
        made.append(TopPLogitsWarper(draw.choice((0.4, 0.9))))
    if draw.random() < 0.4:
        made.append(MinPLogitsWarper(0.1))
    return LogitsProcessorList(made)


def test_rows_of_mixed_batches_are_processed_as_each_alone() -> None:
    V = 13
    for seed in range(300):
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        b = draw.randint(1, 6)
        if draw.random() < 0.3:
            lists = [some_processors(draw)] * b
        else:
            lists = [some_processors(draw) for _ in range(b)]
        logits = torch.randn(
            b, V, generator=generator, dtype=draw.choice((torch.float64, torch.half))
        )
        texts = [torch.randint(V, (draw.randint(1, 9),), generator=generator) for _ in range(b)]
        choosers = [Chooser(each, sample=draw.random() < 0.7, seed=0) for each in lists]
        found = process_rows(choosers, logits, texts)
        assert found.dtype == torch.float32
        for row in range(b):
            expected = logits[row : row + 1].float().clone()
            expected = lists[row](texts[row][None], expected)
            assert torch.equal(found[row], expected[0])


def test_processing_leaves_the_logits_alone() -> None:
    logits = torch.randn(2, 9)
    before = logits.clone()
    warm = Chooser(LogitsProcessorList([TemperatureLogitsWarper(0.5)]), sample=True, seed=0)
    cold = Chooser(LogitsProcessorList(), sample=False, seed=0)
    for choosers in ([warm, warm], [cold, cold], [warm, cold]):
        process_rows(choosers, logits, [None, None])
        assert torch.equal(logits, before)


def test_processors_that_read_no_text_are_called_once_for_a_batch_that_shares_them() -> None:
    calls = []

    class Counting(TopKLogitsWarper):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
            calls.append(len(scores))
            return super().__call__(input_ids, scores)

    choosers = [
        Chooser(LogitsProcessorList([TopKLogitsWarper(3)]), sample=True, seed=s) for s in (1, 2, 3)
    ]
    for chooser in choosers:
        chooser.processors[0].__class__ = Counting
    process_rows(choosers, torch.randn(3, 8), [None] * 3)
    assert calls == [3]


def test_a_processor_with_state_is_no_other_requests() -> None:
    shared = LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])
    one, two = (Chooser(shared, sample=False, seed=0) for _ in range(2))
    assert one.reads_text
    assert one.processors[0] is not two.processors[0]
    assert one.processors[0] is not shared[0]


# --- Noise ----------------------------------------------------------------------------------------


def grid(*sizes: int) -> list[Tensor]:
    """Keys that run over a grid, one per axis."""
    return list(torch.meshgrid(*[torch.arange(n) for n in sizes], indexing="ij"))


KEYS = {
    "one key": [torch.arange(1_000_000)],
    "seeds and positions": grid(1000, 1000),
    "seed, position, column": grid(10, 100, 1000),
    "seed, position, node, kind, column": [*grid(20, 50, 10, 1, 100)],
    "far apart": [torch.arange(1_000_000) * 2**40 + 3, torch.tensor(2**62)],
    "negative": [-torch.arange(1_000_000)],
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_uniform_noise_is_uniform_whatever_its_keys(keys: list[Tensor]) -> None:
    u = uniform(*keys).flatten()
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    bins = 256
    counts = torch.bincount((u * bins).long(), minlength=bins).double()
    assert chi_square(counts, torch.full((bins,), 1 / bins).double()) > 1e-4
    # The low bits must be as good as the high ones.
    low = torch.bincount((u * 2**36 % 1 * bins).long(), minlength=bins).double()
    assert chi_square(low, torch.full((bins,), 1 / bins).double()) > 1e-4


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_neighbouring_noise_is_not_correlated(keys: list[Tensor]) -> None:
    u = uniform(*keys).flatten()
    bins = 12
    for step in (1, 2, 7):
        pairs = (u[:-step] * bins).long() * bins + (u[step:] * bins).long()
        pairs = pairs[:: step + 1]  # pairs that share no number
        counts = torch.bincount(pairs, minlength=bins**2).double()
        assert chi_square(counts, torch.full((bins**2,), bins**-2.0).double()) > 1e-4


def test_noise_along_every_axis_of_its_keys_is_independent() -> None:
    """The same column under neighbouring seeds, positions and nodes."""
    u = uniform(*grid(40, 50, 30, 20))
    bins = 12
    for axis in range(4):
        first, second = u.split(u.shape[axis] // 2, axis)[:2]
        pairs = (first * bins).long() * bins + (second * bins).long()
        counts = torch.bincount(pairs.flatten(), minlength=bins**2).double()
        assert chi_square(counts, torch.full((bins**2,), bins**-2.0).double()) > 1e-4


def test_gumbel_noise_has_gumbels_moments_and_law() -> None:
    g = gumbel(*grid(1000, 1000)).flatten()
    n = len(g)
    assert g.isfinite().all()
    assert abs(g.mean().item() - 0.5772156649) < 5 * math.pi / math.sqrt(6 * n)
    assert g.var().item() == pytest.approx(math.pi**2 / 6, rel=0.01)
    bins = 100
    law = torch.exp(-torch.exp(-g))  # Gumbel's distribution function makes it uniform
    counts = torch.bincount((law * bins).long().clamp(max=bins - 1), minlength=bins).double()
    assert chi_square(counts, torch.full((bins,), 1 / bins).double()) > 1e-4


def test_the_largest_of_logits_and_gumbel_noise_is_a_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, generator=generator, dtype=torch.float64)
    seeds = torch.arange(200_000)[:, None]
    for position in (0, 1, 77):
        noise = gumbel(seeds, torch.tensor(position), torch.arange(12))
        counts = torch.bincount((logits + noise).argmax(-1), minlength=12).double()
        assert chi_square(counts, logits.softmax(-1)) > 1e-4


def test_noise_depends_on_the_keys_alone_and_not_on_the_batch() -> None:
    seeds, positions, columns = torch.tensor([3, 9, 3]), torch.tensor([0, 5, 7]), torch.arange(20)
    together = gumbel(seeds[:, None], positions[:, None], columns)
    for row in range(3):
        assert torch.equal(together[row], gumbel(seeds[row], positions[row], columns))
        for column in (0, 7, 19):
            one = gumbel(seeds[row], positions[row], torch.tensor(column))
            assert torch.equal(together[row, column], one)
    flipped = gumbel(seeds.flip(0)[:, None], positions.flip(0)[:, None], columns)
    assert torch.equal(flipped.flip(0), together)


def test_neighbouring_keys_and_their_order_give_different_noise() -> None:
    u = uniform(*grid(30, 30, 30)).flatten()
    assert len(u.unique()) == len(u)
    extremes = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 2**32, 2**62])
    pairs = uniform(extremes[:, None], extremes[None])
    assert len(pairs.unique()) == pairs.numel()
    assert uniform(torch.tensor(1), torch.tensor(2)) != uniform(torch.tensor(2), torch.tensor(1))
    assert uniform(torch.tensor(1)) != uniform(torch.tensor(1), torch.tensor(0))


def test_the_noise_of_a_tree_does_not_depend_on_how_its_levels_are_asked_for() -> None:
    noise = KeyedNoise(torch.tensor([5, 6]), torch.tensor([1, 9]), torch.ones(2))
    whole = noise.gumbel(0, 12, 7)
    assert whole.shape == (2, 12, 7)
    parts = [noise.gumbel(0, 1, 7), noise.gumbel(1, 4, 7), noise.gumbel(5, 7, 7)]
    assert torch.equal(whole, torch.cat(parts, 1))
    alone = KeyedNoise(torch.tensor([6]), torch.tensor([9]), torch.ones(1))
    assert torch.equal(alone.gumbel(0, 12, 7)[0], whole[1])


def test_numpy_numbers_are_numbers() -> None:
    assert Sampling(temperature=np.float64(0.5)).temperature == 0.5
