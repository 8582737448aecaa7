"""Medusa's heads learn what is said so many places behind, and their acceptance is decoding's."""

from __future__ import annotations

import pytest
import torch

import talking
import tiny
from drafts.test_hybrid import medusa
from training.test_draft import accepted, same_in_blocks, samples
from vispec.decoding.engine import Engine
from vispec.decoding.tree import TreeShape
from vispec.training import draft as training
from vispec.training import losses
from vispec.training.distill import Answer, Question
from vispec.training.features import Online
from vispec.training.medusa import MedusaStage, medusa_acceptance


@torch.no_grad()
def test_the_loss_is_the_mean_over_heads_and_positions() -> None:
    draft, target = medusa(), tiny.target()
    weights = {"kl": 1.0, "ranking": 0.2}
    loss, numbers = MedusaStage(draft, target, weights, decay=0.5)(samples())
    total, count = 0.0, sum(len(s.tokens) for s in samples())
    for k in (1, 2, 3):
        right = seen = 0
        for one in samples():
            for place in range(one.answer_start - 1, len(one.hidden) - k):
                guess = draft(one.hidden[place], target.head)[k - 1][None]
                true = target.head(one.hidden[place + k])[None]
                nothing = torch.zeros(1, 1)
                part = losses.weighted(weights)(
                    losses.Guess(nothing, nothing, guess, losses.Truth(true))
                )
                total += 0.5 ** (k - 1) / 1.75 * part.item() / count
                right += int(guess.argmax() == true.argmax())
                seen += 1
        assert numbers[f"accuracy_{k}"] == pytest.approx(right / seen)
    assert loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_blocks_of_logits_give_what_all_of_them_do(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_in_blocks(
        lambda: MedusaStage(medusa().requires_grad_(True), tiny.target(), {"kl": 1.0}),
        samples(),
        3 * rows * tiny.VOCAB,
        monkeypatch,
    )


def test_acceptance_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = tiny.target(), medusa()
    whole = medusa_acceptance(draft, target, samples())
    monkeypatch.setattr(training, "LOGITS", 3 * tiny.VOCAB)
    assert medusa_acceptance(draft, target, samples()) == whole


def test_acceptance_without_decoding_is_that_of_decoding() -> None:
    target, draft = talking.target(), medusa().requires_grad_(True)
    questions = [
        Question(str(i), f"the {talking.LETTERS[i]}", [lambda i=i: talking.picture(i)])
        for i in range(6)
    ]
    said = [Engine(target).generate([q.request(24, 0)])[0] for q in questions]
    answers = {
        q.key: Answer(q.key, r.token_ids, r.text) for q, r in zip(questions, said, strict=True)
    }
    data = list(Online(target, questions, answers))
    stage = MedusaStage(draft, target, {"soft_cross_entropy": 1.0})
    optimizer = torch.optim.Adam(draft.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        stage(data)[0].backward()
        optimizer.step()
    draft.requires_grad_(False)
    for depth in (1, 2, 3):
        found = medusa_acceptance(draft, target, data, depth)
        decoded = accepted(target, draft, questions, TreeShape.chain(depth))
        assert found["acceptance_length"] == pytest.approx(decoded, abs=1e-12)
    assert found["acceptance_length"] > 1.1
