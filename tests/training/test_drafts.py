"""New drafts have the geometry of their target's decoder layers; given ones what a recipe says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import families
import tiny
import vispec
from drafts.test_reading import ADAPTERS
from vispec.drafts import Eagle3Draft, EagleDraft
from vispec.errors import SettingsError
from vispec.targets import wrap
from vispec.training.drafts import new_draft, refuse_another, refuse_unfit, rotary_base
from vispec.training.recipe import DraftRecipe, Recipe, StageRecipe


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize(("family", "biased"), [("llama", False), ("qwen2_5_vl", True)])
def test_attention_has_biases_where_the_targets_has(family: str, biased: bool, kind: str) -> None:
    target = {one.name: one for one in families.FAMILIES}[family].target()
    draft = new_draft(target, DraftRecipe(kind=kind))  # type: ignore[arg-type]
    assert isinstance(draft, EagleDraft | Eagle3Draft)
    attention = draft.layers[0].self_attn
    assert (attention.q_proj.bias is not None) == biased
    assert draft.config.num_key_value_heads == target.text_config.num_key_value_heads


def test_positions_turn_as_fast_as_the_targets() -> None:
    sizes = families.TEXT_CONFIG | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    target = wrap(Qwen2ForCausalLM(Qwen2Config(**sizes)).double(), None, "tiny")
    draft = new_draft(target, DraftRecipe())
    assert isinstance(draft, EagleDraft)
    position = torch.tensor([[40]])
    _, sine = draft._rotary(position, torch.float64)
    _, true = target.decoder.rotary_emb(torch.zeros(1, dtype=torch.float64), position)
    torch.testing.assert_close(sine.flatten(), true.flatten(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_every_familys_base_is_found(family: families.Family) -> None:
    assert rotary_base(family.target().text_config) >= 1000


WORDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "kind": ({"kind": "eagle"}, {"kind": "medusa"}, "its kind is 'eagle', not 'medusa'"),
    "layers": ({"layers": 2}, {"kind": "eagle", "layers": 3}, "its layers is 2, not 3"),
    "heads": ({"kind": "medusa", "heads": 3}, {"kind": "medusa", "heads": 5}, "is 3, not 5"),
    "queries": (
        {"adapter": {"kind": "query", "heads": 4, "queries": 1}},
        {"adapter": {"kind": "query", "heads": 4, "queries": 8}},
        r"'queries': 1.*, not .*'queries': 8",
    ),
    "fused": ({"aux_layers": [0, 1]}, {"layers": 1, "aux_layers": [0, 2]}, r"\[0, 1\], not"),
    "vocabulary": (
        {"kind": "eagle3", "aux_layers": [0, 1, 2], "vocabulary": 30},
        {"kind": "eagle3", "aux_layers": [0, 1, 2]},
        "its vocabulary is 30, not 0",
    ),
}


@pytest.mark.parametrize("word", WORDS)
def test_a_draft_to_begin_with_is_told_from_what_the_recipe_describes(word: str) -> None:
    stated, other, said = WORDS[word]
    own = DraftRecipe(**stated)
    fewer = torch.arange(own.vocabulary) if own.vocabulary else None
    draft = new_draft(tiny.target(), own, token_map=fewer)
    refuse_another(draft, own, "mine")
    refuse_another(draft, DraftRecipe(), "mine")
    with pytest.raises(SettingsError, match=said):
        refuse_another(draft, DraftRecipe(**other), "mine")


UNFIT: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"kind": "eagle3"}, {"losses": {"features": 1.0}}, "loss of features, and eagle3 guesses"),
    ({"kind": "medusa"}, {"self_fed": 1}, "has self_fed, and medusa's heads run once"),
    ({"kind": "medusa"}, {"losses": {"features": 1.0}}, "loss of features, and medusa"),
    ({}, {"train": "adapter"}, "there is no adapter"),
    ({"adapter": ADAPTERS["pooling"]}, {"train": "adapter"}, "which has no weights"),
    ({"adapter": ADAPTERS["query"]}, {"train": "adapter"}, ""),
]


@pytest.mark.parametrize(("given", "stage", "said"), UNFIT, ids=str)
def test_stages_that_a_given_draft_cannot_have_are_refused(
    tmp_path: Path, given: dict[str, Any], stage: dict[str, Any], said: str
) -> None:
    """Where the recipe describes no draft; what trains an EAGLE may train nothing of another."""
    draft = new_draft(tiny.target(), DraftRecipe(**given))
    vispec.save_pretrained(draft.to(torch.bfloat16), tmp_path / "begun")
    usual = StageRecipe(name="one", data=["a"], losses={"kl": 1.0}, learning_rate=1e-3, steps=3)
    recipe = Recipe(target="x", data={}, stages=[usual])
    refuse_unfit(recipe, str(tmp_path / "begun"))
    recipe = replace(recipe, stages=[usual, replace(usual, name="two", **stage)])
    if said:
        with pytest.raises(SettingsError, match=said):
            refuse_unfit(recipe, str(tmp_path / "begun"))
    else:
        refuse_unfit(recipe, str(tmp_path / "begun"))
