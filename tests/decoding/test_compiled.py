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
from vispec.drafts.eagle3 import Eagle3Config, Eagle3Draft
from vispec.drafts.sequential import SequentialDraft
from vispec.targets import Target, wrap

pytestmark = pytest.mark.slow

CHAIN = SampledShape((2, 1, 1))
NEAR = {"rtol": 0, "atol": 1e-5}  # norms are taken in float32, compiled or not


def answers(
    target: Target,
    draft: SequentialDraft | None,
    prompts: list[dict[str, torch.Tensor]],
    shape: TreeShape | SampledShape,
    slots: int,
    temperature: float = 0.0,
    limit: int = 24,
) -> list[list[int]]:
    work = []
    for seed, inputs in enumerate(prompts):
        wishes = Sampling(temperature=temperature, seed=seed)
        prompt = target.prompt(dict(inputs))
        config = wishes.over(target.model.generation_config)
        processors = target.processors(config, len(prompt), limit)
        chooser = Chooser(processors, sample=temperature > 0, seed=seed)
        work.append(Job(prompt, chooser, limit, lambda token, drafted: token == tiny.EOS))
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


def test_layers_that_eagle3_reads_are_noted_by_compiled_passes(
    prompts: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = (2, 0, 1)
    torch.manual_seed(0)
    config = Eagle3Config(tiny.HIDDEN, 64, 4, 2, tiny.VOCAB, tiny.VOCAB, aux_layers=layers)
    draft = Eagle3Draft(config).to(torch.float64).eval().requires_grad_(False)
    target, shape = wrap(tiny.llava(), None), TreeShape(7, 3, 2)
    expected = answers(target, draft, prompts, shape, 3)
    prompt = target.prompt(dict(prompts[1]))
    with torch.inference_mode():
        features = target.prefill(prompt, target.new_cache(1, 80), 0, layers).features
        target.compile_passes()
        found = target.prefill(prompt, target.new_cache(1, 80), 0, layers).features
    torch.testing.assert_close(found, features, **NEAR)
    with monkeypatch.context() as patch:
        patch.delattr("vispec.targets.base.recorded")  # which what is not compiled goes by
        assert answers(target, draft, prompts, shape, 3) == expected
        assert answers(target, None, prompts, shape, 3) == expected
    decoder = target.decoder
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in decoder.layers)
    assert answers(tiny.target(), draft, prompts, shape, 3) == expected


def test_prompts_of_all_lengths_share_one_compiled_pass() -> None:
    generator = torch.Generator().manual_seed(6)
    target = wrap(tiny.llava(), None)
    target.compile_passes()
    graphs = [counters["stats"]["unique_graphs"]]
    with torch.inference_mode():
        for text in (5, 9, 40, 71, 3):
            prompt = target.prompt(tiny.inputs(generator, images=1, text=text))
            found = target.prefill(prompt, target.new_cache(1, 128), 0)
            expected = tiny.target().model(**prompt.inputs, output_hidden_states=True)
            torch.testing.assert_close(found.features, expected.hidden_states[-1][0], **NEAR)
            torch.testing.assert_close(found.logits, expected.logits[:, -1], **NEAR)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [graphs[0], *[graphs[0] + 1] * 5]


def test_a_rotary_embedding_that_grew_in_between_is_noticed() -> None:
    context = 40
    parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}

    def model() -> Target:
        return wrap(tiny.llava(max_position_embeddings=context, rope_parameters=parameters), None)

    generator = torch.Generator().manual_seed(7)
    prompt, longer = (tiny.inputs(generator, images=1, text=text) for text in (8, 60))
    shape = TreeShape(7, 3, 2)
    expected = answers(model(), None, [prompt], shape, 1, limit=12)
    target = model()
    target.compile_passes()
    assert answers(target, None, [prompt], shape, 1, limit=12) == expected
    with torch.inference_mode():
        target.model(**longer)
    assert target.decoder.rotary_emb.max_seq_len_cached > context
    assert answers(target, None, [prompt], shape, 1, limit=12) == expected


def test_another_model_of_the_same_class_has_passes_of_its_own(
    compiled: tuple[Target, EagleDraft], prompts: list[dict[str, torch.Tensor]]
) -> None:
    models = [tiny.llava(seed=3), tiny.llava(seed=4)]
    models[1].get_decoder().norm.variance_epsilon = 0.5  # nothing that shapes tell
    for model in models:
        expected = answers(wrap(model, None), None, prompts[:2], TreeShape(7, 3, 2), 1)
        target = wrap(model, None)
        target.compile_passes()
        assert answers(target, None, prompts[:2], TreeShape(7, 3, 2), 1) == expected


def test_the_model_object_is_not_changed(compiled: tuple[Target, EagleDraft]) -> None:
    model = compiled[0].model
    assert "forward" not in vars(model.get_decoder())
    assert model.get_decoder()._compiled_call_impl is None
    assert not model.get_decoder()._forward_pre_hooks
