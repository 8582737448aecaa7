"""Speculative text is the target's own text, whatever is proposed.

The reference of greedy text is the unmodified model's `generate`; of sampled text, the plain loop.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

import tiny
from vispec.decoding.loop import Job, run
from vispec.decoding.sampling import Chooser, Sampling
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.base import Draft
from vispec.targets import Target

CASES = 60
"""Prompts; every one is answered with each of the four drafts below."""


def proposals(truth: dict[str, list[int]], dtype: torch.dtype) -> dict[str, Draft]:
    """Drafts whose trees are often right or always wrong, and two real ones."""
    return {
        "oracle": tiny.Oracle(truth, seed=1),
        "wrong": tiny.Oracle(truth, seed=2, hit=0.0),
        "vispec": tiny.draft(dtype),
        "eagle": tiny.draft(dtype, queries=None),
    }


def assert_every_draft_writes(
    expected: list[list[int]], target: Target, make_jobs: Callable[[slice], list[Job]], seed: int
) -> dict[str, list[Job]]:
    """Answer all prompts with every draft, ten at a time, in trees and batches drawn at random."""
    draw = random.Random(seed)
    first = make_jobs(slice(None))
    truth = {
        tiny.prompt_key(job.prompt.inputs): answer + [0] * 30
        for job, answer in zip(first, expected, strict=True)
    }
    done: dict[str, list[Job]] = {}
    for name, draft in proposals(truth, target.dtype).items():
        for start in range(0, len(expected), 10):
            part = slice(start, start + 10)
            depth = draw.randrange(1, 7)
            shape = TreeShape(draw.randrange(2, 20), depth, draw.randrange(1, 6))
            slots = draw.randrange(1, 9)
            work = make_jobs(part)
            found = answers(target, draft, work, shape, slots)
            assert found == expected[part], (name, shape, slots)
            done.setdefault(name, []).extend(work)
    return done


def jobs(
    target: Target, prompts: list[dict[str, Tensor]], limits: list[int], **sampling: Any
) -> list[Job]:
    made = []
    for inputs, limit in zip(prompts, limits, strict=True):
        seed = int(inputs["input_ids"].sum())  # a request's own, wherever it stands in a batch
        wishes = Sampling(**{"temperature": 0.0, "seed": seed} | sampling)
        prompt = target.prompt(dict(inputs))
        config = wishes.over(target.model.generation_config)
        processors = target.processors(config, len(prompt), limit)
        eos = target.eos_token_ids
        made.append(
            Job(
                prompt,
                Chooser(processors, sample=bool(config.do_sample), seed=wishes.seed),
                limit,
                lambda token, drafted, eos=eos: token in eos,  # type: ignore[misc]
                draft_temperature=wishes.temperature or 1.0,
            )
        )
    return made


def answers(
    target: Target,
    draft: Draft | None,
    work: list[Job],
    shape: TreeShape | SampledShape,
    slots: int,
) -> list[list[int]]:
    moves = run(target, draft, work, shape=shape, slots=slots, capacity=128)
    for _ in moves:
        pass
    return [job.token_ids for job in work]


def prompts(
    count: int, dtype: torch.dtype, seed: int = 0
) -> tuple[list[dict[str, Tensor]], list[int]]:
    generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
    made = [
        tiny.inputs(generator, index % 4, text=draw.randrange(2, 12), dtype=dtype)
        for index in range(count)
    ]
    return made, [draw.choice((1, 2, 7, 20, 24)) for _ in range(count)]


@pytest.fixture(scope="module")
def frequent_eos() -> Target:
    """A target with several end-of-sequence tokens, two of which it says often."""
    model = tiny.llava()
    model.generation_config.eos_token_id = [tiny.EOS, 16, 23]
    return tiny.wrap(model, None)


def generated(target: Target, inputs: dict[str, Tensor], limit: int, **options: Any) -> list[int]:
    out = target.model.generate(**inputs, max_new_tokens=limit, do_sample=False, **options)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def test_greedy_equals_generate_in_float64_for_every_tree_and_batch(frequent_eos: Target) -> None:
    target = frequent_eos
    asked, limits = prompts(CASES, torch.float64)
    expected = [generated(target, i, n) for i, n in zip(asked, limits, strict=True)]
    assert sum(len(e) < n for e, n in zip(expected, limits, strict=True)) > 5, "EOS is never met"
    done = assert_every_draft_writes(
        expected, target, lambda part: jobs(target, asked[part], limits[part]), seed=1
    )
    for name, drafted in (("oracle", True), ("wrong", False)):
        stats = [job.stats for job in done[name]]
        share = sum(s.accepted_tokens for s in stats) / sum(s.target_passes for s in stats)
        assert (share > 0.5) == drafted, (name, share)
    assert answers(target, None, jobs(target, asked, limits), TreeShape(), 4) == expected


def test_greedy_in_float32_differs_from_generate_only_at_ties(capsys: Any) -> None:
    target = tiny.target(torch.float32)
    asked, _ = prompts(CASES, torch.float32, seed=5)
    expected = [generated(target, inputs, 20) for inputs in asked]
    truth = {tiny.prompt_key(i): e + [0] * 10 for i, e in zip(asked, expected, strict=True)}
    for name, draft in proposals(truth, torch.float32).items():
        work = jobs(target, asked, [20] * CASES)
        found = answers(target, draft, work, TreeShape(12, 5, 4), 4)
        for inputs, ours, theirs in zip(asked, found, expected, strict=True):
            if ours == theirs:
                continue
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
            before = torch.tensor([theirs[:at]], dtype=torch.long)
            whole = inputs | {"input_ids": torch.cat([inputs["input_ids"], before], 1)}
            with torch.inference_mode():
                first, second = target.model(**whole).logits[0, -1].topk(2).values.tolist()
            with capsys.disabled():
                print(f"\n{name}: tie at token {at}, logit gap {first - second:.2e}")
            assert first - second < 1e-5


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 8},
        {"temperature": 1.3, "top_p": 0.8, "min_p": 0.02},
        {"temperature": 0.9, "repetition_penalty": 1.4},
    ],
    ids=lambda s: "-".join(s),
)
def test_seeded_sampling_equals_the_plain_loop_for_every_tree_and_batch(
    frequent_eos: Target, sampling: dict[str, float]
) -> None:
    target = frequent_eos
    asked, limits = prompts(CASES // 3, torch.float64, seed=7)

    def make(part: slice) -> list[Job]:
        return jobs(target, asked[part], limits[part], **sampling)

    expected = answers(target, None, make(slice(None)), TreeShape(), 1)
    assert_every_draft_writes(expected, target, make, seed=2)


def test_a_repetition_penalty_is_generates_own(frequent_eos: Target) -> None:
    target = frequent_eos
    asked, limits = prompts(12, torch.float64, seed=9)
    expected = [
        generated(target, i, n, repetition_penalty=1.5) for i, n in zip(asked, limits, strict=True)
    ]
    work = jobs(target, asked, limits, repetition_penalty=1.5)
    truth = {tiny.prompt_key(i): e + [0] * 30 for i, e in zip(asked, expected, strict=True)}
    assert answers(target, tiny.Oracle(truth), work, TreeShape(12, 4, 3), 4) == expected


class EveryThirdTokenIsSeven:
    """A processor that keeps state: it counts its own calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 3 == 0:
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)
        return scores


def test_even_a_processor_with_state_sees_what_the_plain_loop_shows_it() -> None:
    target = tiny.target()
    asked, _ = prompts(8, torch.float64, seed=11)
    expected = [
        generated(target, i, 15, logits_processor=LogitsProcessorList([EveryThirdTokenIsSeven()]))
        for i in asked
    ]
    assert all(row[2] == 7 for row in expected)
    work = jobs(target, asked, [15] * 8)
    for job in work:
        job.chooser = Chooser([EveryThirdTokenIsSeven()], sample=False, seed=0)  # type: ignore[arg-type]
    truth = {tiny.prompt_key(i): e + [0] * 20 for i, e in zip(asked, expected, strict=True)}
    assert answers(target, tiny.Oracle(truth), work, TreeShape(12, 4, 3), 3) == expected


def test_the_users_model_generates_the_same_before_between_and_after() -> None:
    model = tiny.llava()
    target = tiny.wrap(model, None)
    asked, limits = prompts(4, torch.float64, seed=13)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    config = model.generation_config.to_dict()
    before = [generated(target, i, n) for i, n in zip(asked, limits, strict=True)]
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    moves = run(
        target,
        tiny.draft(),
        jobs(target, asked, limits),
        shape=TreeShape(9, 3, 3),
        slots=2,
        capacity=99,
    )
    between = []
    for step, _ in enumerate(moves):
        if step == 2:
            between = [generated(target, i, n) for i, n in zip(asked, limits, strict=True)]
    assert between == before
    assert [generated(target, i, n) for i, n in zip(asked, limits, strict=True)] == before
    assert model.generation_config.to_dict() == config
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert hooks == [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
