"""EAGLE-3 drafts of every writer load as published, and are written as they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recordings import FIXTURES, cases
from vispec.checkpoints import eagle3, registry
from vispec.checkpoints.export import export
from vispec.checkpoints.formats import shapes_of
from vispec.checkpoints.summary import summarise
from vispec.drafts.eagle3 import Eagle3Config, Eagle3Draft
from vispec.errors import CheckpointError

CASES = cases("eagle_draft", "eagle3*")


def recorded(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((FIXTURES / f"{case}.json").read_text())["config"]
    tensors = load_file(FIXTURES / f"{case}.safetensors")
    return config, {
        k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")
    }


def folder_of(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors")
    return str(path)


def random_draft(**options: Any) -> Eagle3Draft:
    torch.manual_seed(0)
    geometry = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 20,
        "draft_vocab_size": 20,
    }
    config = Eagle3Config(**(geometry | options))
    token_map = None
    if config.draft_vocab_size != 20:
        token_map = torch.randperm(20)[: config.draft_vocab_size].sort().values
    return Eagle3Draft(config, token_map).eval()


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_a_published_draft_read_and_written_is_the_same_bits(case: str, tmp_path: Path) -> None:
    config, tensors = recorded(case)
    draft = registry.read(folder_of(tmp_path / "published", config, tensors))
    eagle3.write(draft, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    mapped = draft.token_map is not None
    # A mapping that changes nothing is not written.
    assert set(again) == {k for k in tensors if mapped or k not in ("d2t", "t2d")}
    for name, tensor in again.items():
        assert torch.equal(tensor, tensors[name]), name
    assert registry.read(tmp_path / "again").config == draft.config


SPECULATORS = [
    {},
    {"draft_vocab_size": 12},
    {"num_hidden_layers": 3, "qk_norm": True, "norm_output": True, "aux_layers": (1, 5)},
    {"norm_before_fc": True, "norm_before_residual": True},
    {"fc_norm": True, "own_head": False, "target_hidden_size": 8, "head_dim": 8},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 5e5},
    {"attention_bias": True, "output_bias": True, "fc_bias": True, "aux_layers": (3,)},
    {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}, "head_dim": 8},
]
OFFICIAL = [
    {},
    {"draft_vocab_size": 12, "aux_layers": (1, 4, 7)},
    {"target_hidden_size": 8, "max_position_embeddings": 512},
    {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "max_position_embeddings": 64,
        "head_dim": 8,
    },
]


@pytest.mark.parametrize(
    ("options", "speculators"),
    [*((o, True) for o in SPECULATORS), *((o, False) for o in OFFICIAL)],
    ids=str,
)
def test_every_kind_of_draft_survives_writing_and_reading(
    options: dict[str, Any], speculators: bool, tmp_path: Path
) -> None:
    draft = random_draft(**options)
    form = "speculators" if speculators else "eagle3"
    eagle3.write(draft, tmp_path, form, target="someone/model")
    plan = registry.plan_of(tmp_path)
    assert plan.form == ("speculators eagle3" if speculators else "eagle3")
    assert plan.facts["target"] == "someone/model"
    again = registry.read(tmp_path, label="mine")
    assert again.config == draft.config
    assert again.name == "mine"
    ours, theirs = draft.state_dict(), again.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if draft.token_map is not None:
        assert torch.equal(again.token_map, draft.token_map)


@pytest.mark.parametrize("options", [SPECULATORS[i] for i in (2, 3, 4, 6)], ids=str)
def test_what_the_official_format_cannot_say_is_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="--format speculators"):
        export(random_draft(**options), tmp_path, "eagle3")
    assert not (tmp_path / "model.safetensors").exists()


def test_layers_are_counted_as_each_format_does(tmp_path: Path) -> None:
    config, tensors = recorded(CASES[0])
    nested = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 9, 20]}}
    official = registry.read(folder_of(tmp_path / "a", config | nested, tensors))
    assert official.config.aux_layers == (2, 10, 21)
    top = {"eagle_aux_hidden_state_layer_ids": [1, 9, 20]}
    assert registry.read(folder_of(tmp_path / "b", config | top, tensors)).config.aux_layers == (
        1,
        9,
        20,
    )


def test_tensors_that_are_wrong_are_all_listed_under_their_published_names(tmp_path: Path) -> None:
    config, tensors = recorded(CASES[0])
    del tensors["midlayer.mlp.up_proj.weight"], tensors["norm.weight"]
    tensors["midlayer.self_attn.k_proj.weight"] = torch.zeros(3, 3)
    tensors["d2t"] = torch.zeros(7, dtype=torch.long)
    tensors["other.weight"] = torch.zeros(2)
    folder = folder_of(tmp_path, config, tensors)
    with pytest.raises(CheckpointError) as error:
        registry.read(folder)
    assert set(error.value.missing) == {"midlayer.mlp.up_proj.weight", "norm.weight"}
    assert set(error.value.unexpected) == {"other.weight"}
    found = {line.split(":")[0] for line in error.value.misshapen}
    assert found == {"midlayer.self_attn.k_proj.weight", "d2t"}


def test_a_reduced_vocabulary_needs_its_mapping(tmp_path: Path) -> None:
    config, tensors = recorded("eagle_draft/eagle3_reduced_vocab")
    for lacking in ("d2t", "lm_head.weight"):
        rest = {key: value for key, value in tensors.items() if key != lacking}
        folder = folder_of(tmp_path / lacking, config, rest)
        assert lacking in "".join(summarise(folder).problems)
        with pytest.raises(CheckpointError) as error:
            registry.read(folder)
        assert error.value.missing == (lacking,)


@pytest.mark.parametrize("shape", [(5, 0), (0, -8)])
def test_an_embedding_of_another_size_is_told(tmp_path: Path, shape: tuple[int, int]) -> None:
    config, tensors = recorded(CASES[0])
    rows, width = config["vocab_size"] + shape[0], config["hidden_size"] + shape[1]
    tensors["embed_tokens.weight"] = torch.zeros(rows, width)
    with pytest.raises(CheckpointError, match=rf"embed_tokens.weight: found \[{rows}, {width}\]"):
        registry.read(folder_of(tmp_path, config, tensors))


def test_more_layers_than_three_must_be_named(tmp_path: Path) -> None:
    config, tensors = recorded(CASES[0])
    size = config["hidden_size"]
    tensors["fc.weight"] = torch.zeros(size, 5 * size)
    with pytest.raises(CheckpointError, match="fuses 5 layers"):
        registry.read(folder_of(tmp_path, config, tensors))


def test_a_speculator_of_another_kind_is_not_taken_for_one() -> None:
    config, tensors = recorded(CASES[0])
    shapes = shapes_of(tensors)
    assert eagle3.plan(config, shapes, "it") is not None
    assert eagle3.plan(config | {"speculators_model_type": "peagle"}, shapes, "it") is None
