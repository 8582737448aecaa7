"""Compiled passes write the same text, and compile once for many requests."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

import tiny
from vispec.decoding.engine import Engine
from vispec.decoding.loop import Job, run
from vispec.decoding.sampling import Chooser, Sampling
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts import EagleDraft
from vispec.targets import Target, wrap

pytestmark = pytest.mark.slow

CHAIN = SampledShape((2, 1, 1))


def answers(
    target: Target,
    draft: EagleDraft | None,
    prompts: list[dict[str, torch.Tensor]],
    shape: TreeShape | SampledShape,
    slots: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    work = []
    for seed, inputs in enumerate(prompts):
        wishes = Sampling(temperature=temperature, seed=seed)
        prompt = target.prompt(dict(inputs))
        config = wishes.over(target.model.generation_config)
        processors = target.processors(config, len(prompt), 24)
        chooser = Chooser(processors, sample=temperature > 0, seed=seed)
        work.append(Job(prompt, chooser, 24, lambda token, drafted: token == tiny.EOS))
    for _ in run(target, draft, work, shape=shape, slots=slots, capacity=80):
        pass
    return [job.token_ids for job in work]


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [tiny.inputs(generator, images=i % 3, text=4 + i) for i in range(8)]


@pytest.fixture(scope="module")
def compiled() -> tuple[Target, EagleDraft]:
    torch._dynamo.reset()
    engine = Engine(wrap(tiny.llava(), None), tiny.draft(), compile=True)
    assert isinstance(engine.draft, EagleDraft)
    return engine.target, engine.draft


def test_texts_are_those_of_the_model_as_it_is(
    compiled: tuple[Target, EagleDraft], prompts: list[dict[str, torch.Tensor]]
) -> None:
    plain = tiny.target()
    shape = TreeShape(7, 3, 2)
    for temperature in (0.0, 1.0):
        expected = answers(plain, None, prompts, shape, 1, temperature)
        assert len(set(map(tuple, expected))) > 4
        for slots in (1, 3):
            assert answers(*compiled, prompts, shape, slots, temperature) == expected
            assert answers(compiled[0], None, prompts, shape, slots, temperature) == expected


def test_sampled_trees_are_the_uncompiled_ones(
    compiled: tuple[Target, EagleDraft], prompts: list[dict[str, torch.Tensor]]
) -> None:
    expected = answers(tiny.target(), tiny.draft(), prompts[:3], CHAIN, 1, 1.0)
    assert answers(*compiled, prompts[:3], CHAIN, 1, 1.0) == expected


def test_later_requests_compile_nothing(
    compiled: tuple[Target, EagleDraft], prompts: list[dict[str, torch.Tensor]]
) -> None:
    shape = TreeShape(7, 3, 2)
    for slots in (1, 3):
        answers(*compiled, prompts, shape, slots)
    before = dict(counters["stats"])
    for slots in (1, 2, 3):
        answers(*compiled, prompts[::-1], shape, slots)
    assert dict(counters["stats"]) == before


def test_the_model_object_is_not_changed(compiled: tuple[Target, EagleDraft]) -> None:
    model = compiled[0].model
    assert "forward" not in vars(model.get_decoder())
    assert model.get_decoder()._compiled_call_impl is None
    assert not model.get_decoder()._forward_pre_hooks
