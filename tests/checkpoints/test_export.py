"""Exported drafts are read back as they were, and what a format cannot hold is refused or told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from vispec.checkpoints import registry
from vispec.checkpoints.export import FORMATS, export
from vispec.drafts import Eagle3Config, Eagle3Draft, EagleConfig, EagleDraft
from vispec.drafts.block import BlockConfig, BlockNetwork
from vispec.errors import CheckpointError

GEOMETRY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 20,
}


def eagle3(**options: Any) -> Eagle3Draft:
    torch.manual_seed(0)
    config = Eagle3Config(**(GEOMETRY | {"draft_vocab_size": 20} | options))
    mapped = config.draft_vocab_size != 20
    return Eagle3Draft(config, torch.arange(0, 20, 2) if mapped else None).eval()


def block(**options: Any) -> BlockNetwork:
    torch.manual_seed(0)
    own = {"draft_vocab_size": 20, "block_size": 5, "mask_token_id": 19, "aux_layers": (1, 3)}
    network = BlockNetwork(BlockConfig(**(GEOMETRY | own | options))).eval()
    if network.config.draft_vocab_size != 20:
        network.token_map = torch.arange(0, 20, 2)
    return network


def eagle(**options: Any) -> EagleDraft:
    return EagleDraft(EagleConfig(**(GEOMETRY | options)))


SPARK = {"markov_rank": 3, "confidence": "hidden and token", "sample_from_anchor": True}
FAITHFUL = [
    (lambda: tiny.draft(torch.float32), "vispec", "vispec"),
    (lambda: tiny.draft(torch.float32, queries=None), "eagle", "eagle"),
    (eagle3, "eagle3", "eagle3"),
    (lambda: eagle3(draft_vocab_size=10), "eagle3", "eagle3"),
    (lambda: eagle3(draft_vocab_size=10, qk_norm=True), "speculators", "speculators eagle3"),
    (lambda: eagle(qkv_bias=True, fc_bias=False, max_position_embeddings=64), "eagle", "eagle"),
    (block, "dflash", "dflash"),
    (block, "speculators", "speculators dflash"),
    (lambda: block(draft_vocab_size=10, own_head=True), "speculators", "speculators dflash"),
    (lambda: block(**SPARK), "dspark", "dspark"),
    (lambda: block(**SPARK), "speculators", "speculators dspark"),
]


@pytest.mark.parametrize(("make", "form", "read_as"), FAITHFUL)
def test_what_a_format_can_hold_comes_back_as_it_was(
    make: Any, form: str, read_as: str, tmp_path: Path
) -> None:
    draft: nn.Module = make()
    assert export(draft, tmp_path, form, target="someone/model") == []
    plan = registry.plan_of(tmp_path)
    assert plan.form == read_as
    assert plan.facts["target"] == "someone/model"
    again = registry.read(tmp_path)
    assert again.config == draft.config
    ours, theirs = draft.state_dict(), again.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    mapped = getattr(draft, "token_map", None)
    assert (mapped is None) == (again.token_map is None)
    assert mapped is None or torch.equal(mapped, again.token_map)


def test_without_its_adapter_a_draft_reads_text_as_before(tmp_path: Path) -> None:
    draft = tiny.draft(torch.float64)
    assert draft.img_fc is not None
    torch.nn.init.normal_(draft.img_fc.weight, std=0.3)
    left = export(draft, tmp_path, "eagle", closest=True)
    assert len(left) == 2
    assert "adapter" in left[0]
    bare = registry.read(tmp_path)
    assert isinstance(bare, EagleDraft)
    assert bare.adapter is None
    embedding, feature = torch.randn(2, 5, tiny.HIDDEN, dtype=torch.float64)
    nothing = torch.zeros(tiny.HIDDEN, dtype=torch.float64)
    expected = draft.combine(embedding, feature, nothing)
    torch.testing.assert_close(bare.combine(embedding, feature, nothing), expected)


@torch.inference_mode()
def test_without_its_heads_a_block_draft_is_dflash(tmp_path: Path) -> None:
    network = block(**SPARK | {"sample_from_anchor": False, "own_head": True})
    assert "markov_head" in export(network, tmp_path, "dflash", closest=True)[0]
    again = registry.read(tmp_path)
    assert again.markov_head is None
    ours, theirs = network.state_dict(), again.state_dict()
    assert set(ours) - set(theirs) == {
        name for name in ours if "_head." in name and name[0] in "mc"
    }
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert again.config.sample_from_anchor is False


@pytest.mark.parametrize("closest", [False, True])
@pytest.mark.parametrize(
    ("options", "form"),
    [
        (SPARK, "dflash"),
        ({"sample_from_anchor": True}, "dflash"),
        (SPARK | {"sample_from_anchor": False}, "dspark"),
        ({"confidence": "hidden"}, "dspark"),
    ],
)
def test_rows_that_would_be_read_as_other_positions_are_refused(
    options: dict[str, Any], form: str, closest: bool, tmp_path: Path
) -> None:
    """Which row guesses the next token is a convention of DFlash's and DSpark's own formats."""
    with pytest.raises(CheckpointError, match=r"own row.*\n.*speculators"):
        export(block(**options), tmp_path, form, closest=closest)
    export(block(**options), tmp_path, "speculators")
    again = registry.read(tmp_path)
    assert again.config.sample_from_anchor == options.get("sample_from_anchor", False)


def test_a_part_of_the_vocabulary_is_not_lost_with_the_heads(tmp_path: Path) -> None:
    network = block(**SPARK | {"draft_vocab_size": 10, "own_head": True})
    with pytest.raises(CheckpointError, match="part of the vocabulary"):
        export(network, tmp_path, "dflash", closest=True)


@pytest.mark.parametrize(
    ("make", "form", "words"),
    [
        (lambda: tiny.draft(torch.float32), "eagle", ["vision adapter", "--closest"]),
        (lambda: tiny.draft(torch.float32), "eagle3", ["of the kind ViSpec", "vispec, eagle"]),
        (lambda: tiny.draft(torch.float32), "speculators", ["of the kind ViSpec"]),
        (
            lambda: tiny.draft(torch.float32, queries=None),
            "vispec",
            ["of the kind EAGLE"],
        ),
        (eagle3, "dflash", ["of the kind EAGLE-3", "eagle3, speculators"]),
        (lambda: eagle3(norm_output=True), "eagle3", ["norm_output", "speculators"]),
        (lambda: eagle3(fc_bias=True, own_head=False), "eagle3", ["biases and no LM head"]),
        (lambda: eagle(first_norm=True, final_norm=True), "eagle", ["first layer and", "last"]),
        (block, "dspark", ["of the kind DFlash", "dflash"]),
        (block, "eagle", ["of the kind DFlash"]),
        (lambda: block(**SPARK), "dflash", ["Markov head and a confidence head", "speculators"]),
        (lambda: block(draft_vocab_size=10, own_head=True), "dflash", ["speculators"]),
        (lambda: nn.Linear(2, 2), "eagle", ["of the kind Linear"]),
        (eagle3, "gguf", ["'gguf'", *FORMATS]),
    ],
)
def test_what_it_cannot_is_refused_with_the_reason(
    make: Any, form: str, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as error:
        export(make(), tmp_path / "out", form)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_engines_are_told_what_they_read(tmp_path: Path) -> None:
    """vLLM and SGLang take classes, positions and layers from these keys, biases from the first."""
    plain = {"max_position_embeddings": 512}
    export(eagle(**plain), tmp_path / "eagle", "eagle")
    config = json.loads((tmp_path / "eagle" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle", "LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 512
    assert (config["attention_bias"], config["qkv_bias"]) == (False, False)
    assert "bias" not in config
    export(eagle3(aux_layers=(1, 4, 7), **plain), tmp_path / "eagle3", "eagle3")
    config = json.loads((tmp_path / "eagle3" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 4, 7]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 3, 6]
    assert config["max_position_embeddings"] == 512
    assert config["draft_vocab_size"] == config["vocab_size"] == 20
