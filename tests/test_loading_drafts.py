"""Lookups, whole models and both as drafts, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import talking
import tiny
import vispec
from vispec.drafts import EagleConfig, EagleDraft
from vispec.drafts.hybrid import HybridDraft
from vispec.drafts.language_model import LanguageModelDraft
from vispec.drafts.lookup import LookupDraft
from vispec.drafts.universal import UniversalDraft
from vispec.errors import CheckpointError

ASKED = {"images": [talking.picture(0)], "max_new_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking.save(tmp_path_factory.mktemp("target"))


def text_model(folder: Path, tokenizer: object, vocabulary: int) -> Path:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def same_text(engine: vispec.Engine) -> None:
    plain = engine.generate("the cat", speculate=False, **ASKED)
    assert engine.generate("the cat", **ASKED).token_ids == plain.token_ids


def test_a_lookup_needs_no_folder(target: Path) -> None:
    engine = vispec.load(target, "lookup", dtype=torch.float64)
    assert isinstance(engine.draft, LookupDraft)
    same_text(engine)


def test_a_lookup_goes_before_a_draft(target: Path, tmp_path: Path) -> None:
    vispec.save_pretrained(
        EagleDraft(EagleConfig(tiny.HIDDEN, 64, 4, 2, tiny.VOCAB)),
        tmp_path,
        vispec.Card(tree={"size": 9, "depth": 3, "width": 2}),
    )
    engine = vispec.load(target, f"{tmp_path}+lookup", dtype=torch.float64)
    assert isinstance(engine.draft, HybridDraft)
    assert isinstance(engine.draft.draft, EagleDraft)
    assert engine.tree.size == 9
    same_text(engine)


@pytest.mark.parametrize("padding", [0, 3, -1])
def test_a_smaller_model_drafts(target: Path, tmp_path: Path, padding: int) -> None:
    """Whose head may be padded otherwise than the target's."""
    model = text_model(tmp_path, talking.tokenizer(), tiny.VOCAB + padding)
    engine = vispec.load(target, model, dtype=torch.float64)
    assert type(engine.draft) is LanguageModelDraft
    assert not engine.draft.sees
    same_text(engine)


def test_a_model_of_the_same_family_is_shown_the_picture(target: Path, tmp_path: Path) -> None:
    model = talking.save(tmp_path)
    engine = vispec.load(target, model, dtype=torch.float64)
    assert isinstance(engine.draft, LanguageModelDraft)
    assert engine.draft.sees
    same_text(engine)
    assert engine.generate("the cat", **ASKED).stats.acceptance_length > 3


def test_a_model_with_another_vocabulary_crosses_over(target: Path, tmp_path: Path) -> None:
    tokenizer = talking.byte_level()
    engine = vispec.load(
        target, text_model(tmp_path, tokenizer, len(tokenizer)), dtype=torch.float64
    )
    assert isinstance(engine.draft, UniversalDraft)
    same_text(engine)


def test_what_is_neither_is_told(target: Path, tmp_path: Path) -> None:
    model = text_model(tmp_path, talking.tokenizer(), 48)
    config = model / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"blip-2"'))
    with pytest.raises(CheckpointError, match="neither a draft"):
        vispec.load(target, model)
