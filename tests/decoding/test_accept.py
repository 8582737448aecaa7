"""Stochastic acceptance has the target's distribution, and the test would notice if it had not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from table import Table, TableDraft, TableTarget, chi_square, grow, tree_codes
from vispec.decoding import accept
from vispec.decoding.accept import Walk, accept_at_once, accept_keyed, accept_stochastic
from vispec.decoding.loop import Job, run
from vispec.decoding.sampling import Chooser, KeyedNoise, gumbel, scaled
from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.targets.base import Prompt

V, L, DRAWS, BATCH = 4, 2, 1_000_000, 100_000
SHAPES = {
    "chain": SampledShape((1, 1)),
    "tree": SampledShape((3, 2)),
    "bushy": SampledShape((4, 4)),
}
PASSES, FAILS = 1e-3, 1e-9
"""A right rule's p-value lies under `PASSES` once in a thousand tests; a wrong one's is nothing."""

TARGET, DRAFT = Table(V, L, seed=1), Table(V, L, seed=2)


def p_value(
    shape: SampledShape,
    change: Callable[[Tree], Tree] = lambda tree: tree,
    temperature: float = 1.0,
) -> float:
    """Test texts of `L` tokens that start with what one pass accepts."""
    counts = torch.zeros(V**L, dtype=torch.float64)
    for first in range(0, DRAWS, BATCH):
        seed = torch.arange(first, first + BATCH)
        zero = torch.zeros(BATCH, dtype=torch.long)
        noise = KeyedNoise(seed, zero, torch.full((BATCH,), temperature))
        tree = change(grow(DRAFT, zero, zero, shape, noise))
        logits = TARGET.logits[tree_codes(TARGET, tree, zero)]

        def scores(
            node: Tensor, walked: list[Tensor], alive: Tensor, logits: Tensor = logits
        ) -> Tensor:
            return logits[torch.arange(BATCH), node]

        token = accept_stochastic(tree, scores, seed, zero).token
        code = zero
        for place in range(L):
            column = torch.arange(V)
            fresh = gumbel(seed[:, None], torch.tensor(99 + place), column)
            own = (TARGET.logits[code] + fresh).argmax(-1)
            said = token[:, place] if place < token.shape[1] else torch.full_like(own, -1)
            code = TARGET.extend(code, torch.where(said >= 0, said, own))
        offset = sum(V**n for n in range(L))
        counts += torch.bincount(code - offset, minlength=V**L)
    return chi_square(counts, TARGET.law())


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_million_draws_of_the_rule_have_the_targets_law(shape: SampledShape) -> None:
    assert p_value(shape) > PASSES


@pytest.mark.slow
def test_the_drafts_temperature_changes_nothing() -> None:
    assert p_value(SHAPES["tree"], temperature=0.3) > PASSES


@pytest.mark.slow
def test_forgetting_the_residual_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "residual", lambda p, q: p)
    assert p_value(SHAPES["tree"]) < FAILS


@pytest.mark.slow
def test_forgetting_to_renormalise_the_draft_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "normalised", lambda q: q)
    assert p_value(SHAPES["tree"]) < FAILS


@pytest.mark.slow
def test_reranking_sampled_children_is_noticed() -> None:
    def rerank(tree: Tree) -> Tree:
        """Offer the three children of the root by their probability, as a dynamic tree would."""
        assert tree.proposal is not None
        first = tree.token[:, 1:4]
        chance = tree.proposal[:, 0].gather(1, first)
        order = chance.argsort(descending=True)
        token = tree.token.clone()
        token[:, 1:4] = first.gather(1, order)
        return Tree(
            token, tree.parent, tree.depth, 1, tree.logprob, tree.proposal, SampledShape((3,))
        )

    assert p_value(SampledShape((3,))) > PASSES
    assert p_value(SampledShape((3,)), rerank) < FAILS


def sequences(accept_rule: str, count: int, slots: int) -> Tensor:
    """How often the engine's loop wrote each text of `L + 1` tokens, seeds `0 … count - 1`."""
    target, draft = Table(3, 3, seed=5), Table(3, 3, seed=6)

    def job(seed: int) -> Job:
        chooser = Chooser(LogitsProcessorList(), sample=True, seed=seed)
        return Job(Prompt([0], {}), chooser, 3, lambda *_: False)

    jobs = [job(seed) for seed in range(count)]
    shape: Any = SampledShape((2, 1)) if accept_rule == "stochastic" else TreeShape(6, 2, 2)
    proposer = TableDraft(draft) if accept_rule == "stochastic" else None
    for _ in run(TableTarget(target), proposer, jobs, shape=shape, slots=slots, capacity=8):  # type: ignore[arg-type]
        pass
    texts = torch.tensor([job.token_ids for job in jobs])
    return torch.bincount((texts * torch.tensor([9, 3, 1])).sum(1), minlength=27).double()


@pytest.mark.slow
def test_whole_texts_of_the_engine_have_the_targets_law() -> None:
    counts = sequences("stochastic", 200_000, 2_000)
    assert chi_square(counts, Table(3, 3, seed=5).law()) > PASSES


@pytest.mark.slow
def test_keyed_texts_have_the_targets_law_over_seeds() -> None:
    counts = sequences("keyed", 50_000, 1_000)
    assert chi_square(counts, Table(3, 3, seed=5).law()) > PASSES


def random_tree(generator: torch.Generator) -> tuple[Tree, torch.Tensor]:
    """Three requests' nodes, some of which stand for nothing, and logits at each."""
    b, n, vocabulary = 3, 10, 4
    parent = torch.tensor(
        [
            [-1] + [int(torch.randint(i, (1,), generator=generator)) for i in range(1, n)]
            for _ in range(b)
        ]
    )
    token = torch.randint(-1, vocabulary, (b, n), generator=generator)
    logits = torch.randn(b, n, vocabulary, generator=generator)
    depth = torch.zeros_like(parent)
    for i in range(1, n):
        depth[:, i] = depth.gather(1, parent[:, i : i + 1])[:, 0] + 1
    return Tree(token, parent, depth, n, torch.zeros(b, n)), logits


@pytest.mark.parametrize("heat", [(0.7, 0.7, 0.7), (0.7, 1.0, None)], ids=str)
def test_samples_of_all_nodes_at_once_are_those_of_a_walk(heat: tuple[float | None, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    choosers = [
        Chooser(
            LogitsProcessorList([TemperatureLogitsWarper(t)] if t else []),
            sample=t is not None,
            seed=0,
        )
        for t in heat
    ]
    sample = torch.tensor([t is not None for t in heat])
    longest = 0
    for turn in range(200):
        tree, logits = random_tree(generator)
        seed, position = torch.tensor([turn, 7, 2**62]), torch.tensor([0, turn, 5])
        walk = Walk(logits, choosers, [None] * 3)
        wanted = accept_keyed(tree, walk, seed, position, sample).to_lists()
        found = accept_at_once(tree, scaled(choosers, logits), seed, position, sample)
        assert found == wanted
        longest = max(longest, *map(len, wanted[0]))
    assert longest > 3


@pytest.mark.parametrize("rule", ["keyed", "at once"])
def test_a_greedy_walk_accepts_the_longest_path_by_brute_force(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        tree, logits = random_tree(generator)
        b, n = tree.token.shape
        token, parent = tree.token, tree.parent
        zero = torch.zeros(b, dtype=torch.long)
        rows = torch.arange(b)

        def scores(node: Tensor, *_: object, at: Tensor = logits, rows: Tensor = rows) -> Tensor:
            return at[rows, node]

        if rule == "at once":
            accepted = accept_at_once(tree, logits, zero, zero, None)
        else:
            accepted = accept_keyed(tree, scores, zero, zero, None).to_lists()
        for row, (path, tokens) in enumerate(zip(*accepted, strict=True)):
            node, expected_path, expected_tokens = 0, [0], []
            while True:
                choice = int(logits[row, node].argmax())
                expected_tokens.append(choice)
                children = [
                    i for i in range(n) if parent[row, i] == node and token[row, i] == choice
                ]
                if not children:
                    break
                node = children[0]
                expected_path.append(node)
            assert (path, tokens) == (expected_path, expected_tokens)


def test_logits_that_differ_only_beyond_float32_are_a_tie_as_they_are_for_generate() -> None:
    logits = torch.tensor([[[1.0, 1.0 + 1e-12, 0.0]]], dtype=torch.float64)
    tree = Tree.root(torch.tensor([0]))
    zero = torch.zeros(1, dtype=torch.long)
    chooser = Chooser(LogitsProcessorList(), sample=False, seed=0)
    walk = Walk(logits, [chooser], [None])
    scores = scaled([chooser], logits)
    assert accept_at_once(tree, scores, zero, zero, None) == ([[0]], [[0]])
    assert accept_keyed(tree, walk, zero, zero, None).to_lists() == ([[0]], [[0]])
