"""Block drafts of every writer are recognised, checked and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from families import FAMILIES
from recordings import FIXTURES, cases
from vispec.checkpoints import block, registry
from vispec.checkpoints.formats import shapes_of
from vispec.drafts.block import BlockConfig, BlockNetwork
from vispec.errors import CheckpointError, DraftMismatchError
from vispec.targets import wrap

CASES = cases("dflash_draft")
LAYER = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 20,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}
MASKS = {"block_size": 6, "mask_token_id": 19}


def recorded(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((FIXTURES / f"{case}.json").read_text())["config"]
    tensors = load_file(FIXTURES / f"{case}.safetensors")
    return config, {
        k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")
    }


def network(**options: Any) -> BlockNetwork:
    torch.manual_seed(0)
    geometry = {key: value for key, value in LAYER.items() if key != "model_type"}
    own = {"draft_vocab_size": 20, "aux_layers": (2, 5), **MASKS}
    return BlockNetwork(BlockConfig(**(geometry | own | options)))


def folder_of(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors")
    return str(path)


@pytest.mark.parametrize("case", CASES)
def test_recorded_drafts_are_recognised_and_read(case: str, tmp_path: Path) -> None:
    config, tensors = recorded(case)
    folder = folder_of(tmp_path, config, tensors)
    plan = registry.plan_of(folder)
    assert plan.form == "dflash"
    read = registry.read(folder)
    assert read.config.block_size == 8
    assert read.config.target_layers == 12
    assert all(torch.equal(read.state_dict()[k], v) for k, v in tensors.items())


# What each writer's configuration and tensors look like beside the layers.
WRITERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "z-lab, newer": (
        "dflash",
        LAYER | {"dflash_config": {"target_layer_ids": [1, 4], **MASKS}, "num_target_layers": 9},
        {},
    ),
    "DeepSpec": (
        "dspark",
        LAYER | MASKS | {"target_layer_ids": [1, 4], "markov_rank": 3},
        {"markov_rank": 3, "confidence": "hidden and token", "own_head": True},
    ),
    "speculators, DFlash": (
        "speculators dflash",
        {
            "speculators_model_type": "dflash",
            "transformer_layer_config": LAYER,
            "aux_hidden_state_layer_ids": [2, 5],
            "draft_vocab_size": 11,
            "speculators_config": {"verifier": {"name_or_path": "someone/model"}},
            **MASKS,
        },
        {"draft_vocab_size": 11, "own_head": True},
    ),
    "speculators, DSpark": (
        "speculators dspark",
        {
            "speculators_model_type": "dspark",
            "transformer_layer_config": LAYER,
            "aux_hidden_state_layer_ids": [2, 5],
            "draft_vocab_size": 20,
            "sample_from_anchor": True,
            **MASKS,
        },
        {"markov_rank": 4, "markov_kind": "gated", "confidence": "hidden"},
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writers_drafts_are_read(writer: str, tmp_path: Path) -> None:
    form, config, options = WRITERS[writer]
    made = network(**options)
    tensors = dict(made.state_dict())
    if options.get("draft_vocab_size"):
        tensors["d2t"] = torch.arange(11) * 0 + 3
        tensors["t2d"] = torch.ones(20, dtype=torch.bool)
    if form == "dspark":
        tensors["embed_tokens.weight"] = torch.zeros(20, 16)
    folder = folder_of(tmp_path, config, tensors)
    plan = registry.plan_of(folder)
    assert plan.form == form
    read = registry.read(folder)
    assert read.config.aux_layers == (2, 5)
    for key in ("markov_rank", "markov_kind", "confidence", "draft_vocab_size", "own_head"):
        assert getattr(read.config, key) == getattr(made.config, key), key
    assert read.config.sample_from_anchor == ("dspark" in form)
    if options.get("draft_vocab_size"):
        assert read.token_map.tolist() == list(range(3, 14))
        assert plan.facts["target"] == "someone/model"


@pytest.mark.parametrize("key", ["block_size", "mask_token_id", "target_layer_ids"])
def test_a_configuration_without_its_block_names_the_key(key: str, tmp_path: Path) -> None:
    config, tensors = recorded(CASES[0])
    inner = dict(config["dflash_config"])
    config = {k: v for k, v in config.items() if k != key}
    inner.pop(key, None)
    with pytest.raises(CheckpointError) as error:
        registry.read(folder_of(tmp_path, config | {"dflash_config": inner}, tensors))
    assert error.value.missing == (key,)


def test_a_reduced_vocabulary_needs_its_own_mapping_and_head(tmp_path: Path) -> None:
    _, config, _ = WRITERS["speculators, DFlash"]
    tensors = dict(network().state_dict())
    with pytest.raises(CheckpointError) as error:
        registry.read(folder_of(tmp_path, config, tensors))
    assert set(error.value.missing) == {"d2t", "lm_head.weight"}


def test_a_speculator_of_another_kind_is_not_taken_for_one() -> None:
    config, tensors = recorded(CASES[0])
    shapes = shapes_of(tensors)
    assert block.plan(config | {"speculators_model_type": "dflash2"}, shapes, "it") is None


def test_what_does_not_fit_a_target_is_listed() -> None:
    target = wrap(FAMILIES[0].model(), None)
    with pytest.raises(DraftMismatchError) as error:
        network(aux_layers=(1, 8), target_layers=9).check(target)
    assert len(error.value.mismatches) == 5
    for words in (
        "shares the token embedding and LM head",
        "features of size 16",
        "vocabulary of 20",
        "9 layers",
        "[8]",
    ):
        assert words in str(error.value)
