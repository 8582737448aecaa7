"""Small models for benchmarks learn from what a target said, and draft for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import talking

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from small_model import Small, train_small
from vispec.decoding.engine import Engine
from vispec.drafts.language_model import LanguageModelDraft
from vispec.drafts.universal import UniversalDraft
from vispec.loading_drafts import load_draft
from vispec.training.curves import read_log
from vispec.training.distill import Question, distill
from vispec.training.features import Online


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (Small(layers=1), LanguageModelDraft),
        (Small(sees=False, layers=1), LanguageModelDraft),
        (Small(sees=False, layers=1, vocabulary=300), UniversalDraft),
    ],
    ids=["sees", "blind", "other words"],
)
def test_it_learns_and_drafts(tmp_path: Path, shape: Small, kind: type) -> None:
    target = talking.target(torch.float32)
    asked = [
        Question(str(i), f"the {talking.LETTERS[i]}", [lambda i=i: talking.picture(i)])
        for i in range(8)
    ]
    answers = distill(Engine(target), asked, tmp_path / "answers", max_new_tokens=16)
    samples = list(Online(target, asked, answers))
    judged = []
    for place, minutes in ((tmp_path / "begun", 1e-6), (tmp_path, 0.03)):
        train_small(target, shape, [samples], samples[:3], place, minutes)
        judged.append(read_log(place / "stages" / "whole")[-1]["heldout_loss"])
    assert judged[1] < judged[0]
    draft, _ = load_draft(tmp_path / "draft", target)
    assert type(draft) is kind
    engine = Engine(target, draft)
    for question in asked[:2]:
        request = question.request(16, 0)
        plain = engine.generate(request, speculate=False)
        assert engine.generate(request).token_ids == plain.token_ids
