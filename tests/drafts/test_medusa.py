"""Medusa's heads guess what each of them says, and the tree holds their likeliest combinations."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn import functional as F

import talking
import tiny
from drafts.test_hybrid import medusa
from trees import path
from vispec.decoding.engine import Engine, Request
from vispec.decoding.sampling import Sampling
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.medusa import MedusaConfig, MedusaDraft
from vispec.errors import DraftMismatchError
from vispec.targets.base import Prefill, Prompt


@pytest.mark.parametrize("own", [False, True])
def test_heads_are_residual_layers_and_an_lm_head(own: bool) -> None:
    torch.manual_seed(0)
    draft = MedusaDraft(MedusaConfig(8, 20, heads=3, layers=2, own_heads=own))
    for parameter in draft.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    feature, head = torch.randn(5, 8), torch.nn.Linear(8, 20, bias=False)
    found = draft(feature, head)
    assert found.shape == (5, 3, 20)
    for k, one in enumerate(draft.heads):
        x = feature
        for layer in one.layers:
            x = x + F.silu(x @ layer.weight.T + layer.bias)
        weight = one.lm_head.weight if own else head.weight
        torch.testing.assert_close(found[:, k], x @ weight.T)


def test_untrained_heads_say_what_the_target_says() -> None:
    draft, head = MedusaDraft(MedusaConfig(8, 20)), torch.nn.Linear(8, 20, bias=False)
    feature = torch.randn(3, 8)
    assert torch.equal(draft(feature, head)[:, 2], head(feature))


@torch.inference_mode()
def test_the_tree_holds_the_likeliest_combinations() -> None:
    draft, target = medusa(), talking.target()
    features = torch.randn(6, tiny.HIDDEN).double()
    session = draft.session(target, 1, 50)
    prefill = Prefill(torch.empty(0), features, torch.empty(0), torch.full((6,), -1), 0, 0)
    session.begin(0, Prompt([1] * 6, {}), prefill, 4)
    for step in range(2):
        feature = features[-1]
        if step:
            fresh = torch.randn(1, 4, tiny.HIDDEN).double()
            session.advance([[0, 2]], [[8, 9]], fresh)
            feature = fresh[0, 2]
        # Wide enough that no level is pruned before the ranking.
        tree = session.propose(torch.tensor([4]), TreeShape(9, 5, 12), None)
        assert tree.max_depth == 3
        log_p = draft(feature, target.head).log_softmax(-1)
        best = log_p.topk(12, -1)
        scores = {}
        for depth in (1, 2, 3):
            for ranks in product(range(12), repeat=depth):
                way = tuple(best.indices[k, r].item() for k, r in enumerate(ranks))
                scores[way] = sum(best.values[k, r].item() for k, r in enumerate(ranks))
        expected = set(sorted(scores, key=scores.__getitem__, reverse=True)[:8])
        parent, token = tree.parent[0].tolist(), tree.token[0].tolist()
        ways = {tuple(token[at] for at in path(parent, node)[1:]) for node in range(1, 9)}
        assert ways == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_the_targets_own(temperature: float) -> None:
    engine = Engine(
        talking.target(), medusa(), tree=TreeShape(9, 3, 3), sampled=SampledShape((2, 1, 1, 1))
    )
    sampling = Sampling(max_new_tokens=20, temperature=temperature, seed=4)
    asked = [Request("the cat", [talking.picture(i)] * (i % 3), sampling) for i in range(5)]
    plain = [engine.generate(one, speculate=False).token_ids for one in asked]
    assert [result.token_ids for result in engine.generate(asked)] == plain
    assert all(r.token_ids for r in engine.generate(asked, accept="stochastic"))


def test_heads_of_another_model_are_refused() -> None:
    with pytest.raises(DraftMismatchError) as error:
        MedusaDraft(MedusaConfig(8, 20)).check(talking.target())
    width, vocabulary, numbers = error.value.mismatches
    assert "hidden size 8" in width
    assert "vocabulary of 20" in vocabulary
    assert "float32" in numbers
