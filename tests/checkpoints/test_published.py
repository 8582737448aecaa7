"""Folders as each writer publishes them are recognised, described, checked and read."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from published import BLOCK, EAGLE, EAGLE3, Shapes, dflash, eagle, eagle3, vispec
from vispec.checkpoints import registry
from vispec.checkpoints.summary import mismatches, summarise
from vispec.drafts import Eagle3Draft, EagleDraft
from vispec.drafts.block import BlockNetwork
from vispec.errors import CheckpointError

OWN = 20
"""Tokens of the reduced vocabulary."""
HEADS: Shapes = {
    "markov_head.markov_w1.weight": (64, 6),
    "markov_head.markov_w2.weight": (64, 6),
    "confidence_head.proj.weight": (1, 38),
    "confidence_head.proj.bias": (1,),
}


def folder(path: Path, config: dict[str, Any], shapes: Shapes) -> Path:
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    if "d2t" in shapes:
        said = torch.arange(0, 60, 3)
        tensors["d2t"] = said - torch.arange(OWN)
        tensors["t2d"] = torch.zeros(64, dtype=torch.bool).index_fill(0, said, True)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "target")
    return tmp_path / "target"


@pytest.mark.parametrize("writer", EAGLE)
def test_eagle_drafts_are_read(writer: str, tmp_path: Path, target: Path) -> None:
    """They are pickled: read where that is insisted on, and safetensors of them always."""
    config, bias = EAGLE[writer], writer == "Vicuna"
    kv = 8 * config["num_key_value_heads"]
    place = folder(tmp_path / "draft", config, eagle(32, 48, kv, 64, bias))
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    for pickled in (False, True):
        if pickled:
            (place / "model.safetensors").unlink()
        found = summarise(place, pickled=pickled)
        assert (found.kind, found.form, found.problems) == ("draft", "eagle", [])
        assert mismatches(place, target, pickled=pickled) == []
        draft = registry.read(place, pickled=pickled)
        assert isinstance(draft, EagleDraft)
        assert draft.adapter is None
        assert draft.config.rope_theta == config.get("rope_theta", 10000.0)
        assert (draft.fc.bias is not None) == bias
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        registry.read(place)


@pytest.mark.parametrize("writer", EAGLE3)
def test_eagle3_drafts_are_read(writer: str, tmp_path: Path, target: Path) -> None:
    config = EAGLE3[writer]
    place = folder(tmp_path / "draft", config, eagle3(32, 48, 16, 64, OWN))
    found = summarise(place)
    assert (found.kind, found.form, found.problems) == ("draft", "eagle3", [])
    draft = registry.read(place)
    assert isinstance(draft, Eagle3Draft)
    assert draft.follows_positions == ("mrope_section" in (config.get("rope_scaling") or {}))
    assert draft.token_map is not None
    assert draft.token_map.tolist() == list(range(0, 60, 3))
    layers = (2, 10, 21) if "eagle_config" in config else None
    assert draft.config.aux_layers == layers
    # Of a target of eight layers, 21 is one too many.
    misfits = mismatches(place, target)
    assert len(misfits) == (layers is not None)
    assert layers is None or "[10, 21]" in misfits[0]


@pytest.mark.parametrize("writer", BLOCK)
def test_block_drafts_are_read(writer: str, tmp_path: Path, target: Path) -> None:
    spark = "markov_rank" in json.dumps(BLOCK[writer])
    shapes = dflash(32, 48, 32, 16, 8, 2, 2) | (HEADS if spark else {})
    place = folder(tmp_path / "draft", BLOCK[writer], shapes)
    found = summarise(place)
    assert (found.form, found.problems) == ("dspark" if spark else "dflash", [])
    assert mismatches(place, target) == []
    network = registry.read(place)
    assert isinstance(network, BlockNetwork)
    assert network.config.aux_layers == (2, 6)
    assert (network.markov_head is not None) == spark
    assert network.config.sample_from_anchor == spark


def _block(config: dict[str, Any]) -> Shapes:
    return dflash(32, 48, 32, 16, 8, 2, 2) | (HEADS if "markov_rank" in str(config) else {})


CASES: dict[str, tuple[dict[str, Any], Shapes]] = {
    **{
        f"eagle {w}": (c, eagle(32, 48, 8 * c["num_key_value_heads"], 64)) for w, c in EAGLE.items()
    },
    **{
        f"vispec {w}": (c, vispec(32, 48, 4, c["num_key_value_heads"], 64, False))
        for w, c in EAGLE.items()
    },
    **{f"eagle3 {w}": (c, eagle3(32, 48, 16, 64, OWN)) for w, c in EAGLE3.items()},
    **{f"block {w}": (c, _block(c)) for w, c in BLOCK.items()},
}
NONSENSE: list[dict[str, Any]] = [
    {"rope_scaling": {"type": "linear"}},
    {"rope_scaling": {"rope_type": "llama3"}},
    {"rope_scaling": "yarn"},
    {"rope_theta": "high"},
    {"hidden_size": 0},
    {"hidden_size": "wide"},
    {"num_attention_heads": -4},
    {"vocab_size": 12.5},
    {"num_hidden_layers": None, "draft_num_hidden_layers": None},
    {"block_size": 0},
    {"block_size": "32"},
]


@pytest.mark.parametrize("said", NONSENSE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_whatever_nonsense_a_configuration_says_is_an_error_of_ours(
    name: str, said: dict[str, Any]
) -> None:
    """Or none at all, where that format does not read the key."""
    config, shapes = CASES[name]
    for key in ("transformer_layer_config", "dflash_config"):
        if key in config:
            config = {**config, key: {**config[key], **said}}
    with contextlib.suppress(CheckpointError):
        registry.plan({**config, **said}, shapes, name)


@pytest.mark.parametrize("name", CASES)
def test_whatever_shape_a_tensor_has_is_an_error_of_ours(name: str) -> None:
    config, shapes = CASES[name]
    for key in shapes:
        for shape in ((), (3,), (0, 0), (2, 3, 4)):
            changed = {**shapes, key: shape}
            try:
                plan = registry.plan(config, changed, name)
            except CheckpointError:
                continue
            assert plan is None or plan.problems(name, changed) is not None
