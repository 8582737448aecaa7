"""Looked-up and drafted trees in one batch; what is said stays the target's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import talking
import tiny
from vispec.decoding.engine import Engine, Request
from vispec.decoding.sampling import Sampling
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.hybrid import HybridDraft
from vispec.drafts.lookup import LookupDraft
from vispec.drafts.medusa import MedusaConfig, MedusaDraft


def medusa() -> MedusaDraft:
    torch.manual_seed(3)
    draft = MedusaDraft(MedusaConfig(tiny.HIDDEN, tiny.VOCAB, heads=3)).double().eval()
    for parameter in draft.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return draft.requires_grad_(False)


@pytest.mark.parametrize("accept", ["keyed", "stochastic"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("other", [tiny.draft, medusa])
def test_the_text_is_the_targets_own(other: Any, temperature: float, accept: str) -> None:
    if temperature and accept == "stochastic":
        pytest.skip("its text has the same distribution only; see test_accept")
    target = talking.target()
    engine = Engine(
        target,
        HybridDraft(other(), LookupDraft(3, 1)),
        tree=TreeShape(9, 3, 3),
        sampled=SampledShape((2, 1)),
        max_batch=3,
    )
    sampling = Sampling(max_new_tokens=40, temperature=temperature, seed=4)
    asked = [Request("the cat", [talking.picture(i)] * (i % 3), sampling) for i in range(6)]
    plain = [engine.generate(one, speculate=False).token_ids for one in asked]
    results = engine.generate(asked, accept=accept)  # type: ignore[call-overload]
    assert [result.token_ids for result in results] == plain


@torch.inference_mode()
def test_each_request_has_the_tree_of_whoever_found_one() -> None:
    """Of two requests one has said its last words before."""
    target, shape = talking.target(), TreeShape(9, 3, 3)
    hybrid = HybridDraft(tiny.draft(), LookupDraft(3, 2)).session(target, 2, 200)
    alone = tiny.draft().session(target, 2, 200)
    cache = target.new_cache(2, 200)
    for slot, words in enumerate(("a b a b", "the cat")):
        prompt = target.encode(words)
        prefill = target.prefill(prompt, cache, slot)
        for session in (hybrid, alone):
            session.begin(slot, prompt, prefill, 5)
    # Both sessions take in the same words; the first request's were there twice.
    said = [[11, 12, 13, 11, 12], [20, 21, 22, 23, 24]]
    features = torch.randn(2, 5, tiny.HIDDEN).double()
    for session in (hybrid, alone):
        session.advance([list(range(5))] * 2, said, features)
    roots = torch.tensor([12, 24])
    mixed, drafted = hybrid.propose(roots, shape, None), alone.propose(roots, shape, None)
    assert mixed.token[0, :4].tolist() == [12, 13, 11, 12]
    assert (mixed.token[0, 4:] == -1).all()
    n = drafted.size
    for name in ("token", "parent", "depth"):
        assert torch.equal(getattr(mixed, name)[1, :n], getattr(drafted, name)[1])
    assert (mixed.token[1, n:] == -1).all()


def test_its_name_says_both() -> None:
    assert HybridDraft(medusa()).name == "medusa with lookup"
