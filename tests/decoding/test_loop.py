"""The loop on a language whose probabilities are known: who moves when, and with which law."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from table import Table, TableDraft, TableTarget, chi_square
from trees import random_parents
from vispec.decoding.accept import accept_stochastic
from vispec.decoding.loop import Job, run
from vispec.decoding.sampling import Chooser, KeyedNoise
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.growth import grow_sampled
from vispec.targets.base import Prompt

V, L = 3, 6
TARGET, DRAFT = TableTarget(Table(V, L, seed=5)), TableDraft(Table(V, L, seed=6))
CHAIN, TREE = SampledShape((1, 1)), SampledShape((2, 1, 1))


def make(
    seed: int,
    limit: int = L,
    finished: Callable[[int, bool], bool] = lambda *_: False,
    processors: LogitsProcessorList | None = None,
) -> Job:
    chooser = Chooser(processors or LogitsProcessorList(), sample=True, seed=seed)
    return Job(Prompt([0], {}), chooser, limit, finished)


def moves(jobs: list[Job], shape: Any = CHAIN, slots: int = 3, draft: Any = DRAFT) -> list[Any]:
    return list(run(TARGET, draft, jobs, shape=shape, slots=slots, capacity=9))  # type: ignore[arg-type]


def test_texts_do_not_depend_on_the_slots_or_the_company() -> None:
    limits = [1, 6, 3, 2, 6, 5, 4, 1, 6]
    alone = []
    for seed, limit in enumerate(limits):
        job = make(seed, limit)
        moves([job], slots=1)
        alone.append(job.token_ids)
    for slots in (1, 2, 4, 20):
        jobs = [make(seed, limit) for seed, limit in enumerate(limits)]
        moves(jobs, slots=slots)
        assert [job.token_ids for job in jobs] == alone
        assert [len(job.token_ids) for job in jobs] == limits
        assert all(job.finish_reason == "length" for job in jobs)


def test_no_more_requests_than_slots_move_at_once_and_each_until_its_end() -> None:
    draw = random.Random(0)
    jobs = [make(seed, draw.randint(1, L)) for seed in range(11)]
    lengths = [0] * len(jobs)
    for moved in run(TARGET, DRAFT, jobs, shape=CHAIN, slots=4, capacity=9):  # type: ignore[arg-type]
        assert len(moved) > 0
        for job in moved:
            index = jobs.index(job)
            assert len(job.token_ids) > lengths[index]
            lengths[index] = len(job.token_ids)
        running = [job for job in jobs if job.token_ids and job.finish_reason is None]
        assert len(running) <= 4
    assert lengths == [job.limit for job in jobs]


def test_every_token_is_told_once_and_none_behind_the_end() -> None:
    for seed in range(40):
        told: list[tuple[int, bool]] = []

        def finished(token: int, drafted: bool, told: list[Any] = told) -> bool:
            told.append((token, drafted))
            return token == 1

        job = make(seed, finished=finished)
        moves([job], TREE)
        assert [token for token, _ in told] == job.token_ids
        assert 1 not in job.token_ids[:-1]
        assert (job.finish_reason == "stop") == (job.token_ids[-1] == 1)
        assert sum(drafted for _, drafted in told) == job.stats.accepted_tokens
        assert not told[0][1]


def test_without_jobs_nothing_moves() -> None:
    assert moves([]) == []


def test_jobs_that_end_in_their_prefill_take_no_pass() -> None:
    jobs = [make(seed, 1) for seed in range(5)]
    moves(jobs, slots=2)
    assert all(job.stats.target_passes == 0 for job in jobs)
    assert all(len(job.token_ids) == 1 for job in jobs)


# --- The law of texts under logits processors -----------------------------------------------------

PROCESSORS = {
    "warpers": LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(2)]),
    "text": LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(2.0), TemperatureLogitsWarper(1.5)]
    ),
}


def law(processors: LogitsProcessorList, length: int) -> Tensor:
    """Probability of every text, each prefix processed alone by transformers."""
    table, found = TARGET.table, []
    for text in itertools.product(range(V), repeat=length):
        code, chance = torch.tensor(0), 1.0
        for place, token in enumerate(text):
            before = torch.tensor([[0, *text[:place]]])
            p = processors(before, table.logits[code][None].float()).softmax(-1)
            chance *= p[0, token].item()
            code = table.extend(code, torch.tensor(token))
        found.append(chance)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [TREE, TreeShape(6, 2, 2)], ids=["stochastic", "keyed"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_processed_texts_have_the_law_of_the_processed_target(name: str, shape: Any) -> None:
    count = {"warpers": 16_000, "text": 8_000}[name]
    jobs = [make(seed, 3, processors=PROCESSORS[name]) for seed in range(count)]
    moves(jobs, shape, slots=1000, draft=DRAFT if shape is TREE else None)
    texts = torch.tensor([job.token_ids for job in jobs])
    counts = torch.bincount((texts * torch.tensor([V * V, V, 1])).sum(1), minlength=V**3)
    expected = law(PROCESSORS[name], 3)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    assert chi_square(counts[possible].double(), expected[possible]) > 1e-3


def test_impossible_tokens_on_either_side_leave_the_law_as_it_is() -> None:
    """A target and a draft that each rule tokens out, and more children than are possible."""
    V, count = 6, 100_000
    seeds, zero = torch.arange(count), torch.zeros(count).long()
    for case in range(4):
        generator = torch.Generator().manual_seed(case)
        p, q = torch.randn(2, V, generator=generator, dtype=torch.float64)
        ruled = random_parents(1, V, generator)  # any few numbers below V
        p[ruled[0, 1:3]] = -torch.inf
        q[ruled[0, 3:]] = -torch.inf
        shape = SampledShape((4,))
        noise = KeyedNoise(seeds, zero, torch.full((count,), 0.8))

        def never(*_: Tensor) -> Tensor:
            raise AssertionError("a tree of one level expands nothing")

        def scores(*_: object, p: Tensor = p) -> Tensor:
            return p.expand(count, -1)

        tree = grow_sampled(zero, q.expand(count, -1), never, shape, noise)
        step = accept_stochastic(tree, scores, seeds, zero)
        counts = torch.bincount(step.token[:, 0], minlength=V).double()
        expected = p.softmax(-1)
        assert counts[expected == 0].sum() == 0
        assert chi_square(counts[expected > 0], expected[expected > 0]) > 1e-4
