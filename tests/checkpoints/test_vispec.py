"""Published drafts are read and written as they are, and wrong ones are told what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recordings import FIXTURES, cases
from vispec.adapters import QueryAdapter, build
from vispec.checkpoints import registry, vispec
from vispec.checkpoints.files import tensor_headers
from vispec.drafts import EagleConfig, EagleDraft
from vispec.errors import CheckpointError

CASES = [*cases("vispec_draft"), *cases("eagle_draft", "eagle2*")]


def recorded(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A published draft's configuration and tensors."""
    config = json.loads((FIXTURES / f"{case}.json").read_text())["config"]
    tensors = load_file(FIXTURES / f"{case}.safetensors")
    return config, {
        k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")
    }


def shapes_in(folder: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape, _ in tensor_headers(folder)}


def random_draft(**options: Any) -> EagleDraft:
    torch.manual_seed(0)
    queries, bias = options.pop("queries", 3), options.pop("bias", False)
    embedding = torch.nn.Embedding(20, 16) if options.pop("embedding", False) else None
    config = EagleConfig(16, 24, 4, **({"num_key_value_heads": 2, "vocab_size": 20} | options))
    adapter = QueryAdapter(16, 4, queries, bias) if queries else None
    return EagleDraft(config, adapter, embedding)


def folder_of(
    tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None
) -> str:
    """A published draft's folder; by default with the configuration of `random_draft`."""
    if config is None:
        vispec.write(random_draft(), tmp_path)
    else:
        tmp_path.mkdir(exist_ok=True)
        (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    return str(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_a_published_draft_read_and_written_is_the_same_bits_under_the_same_names(
    case: str, tmp_path: Path
) -> None:
    config, tensors = recorded(case)
    draft = registry.read(folder_of(tmp_path, tensors, config))
    vispec.write(draft, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor), name
    assert registry.read(str(tmp_path / "again")).config == draft.config
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    shared = {"hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"}
    assert {key: written[key] for key in shared} == {key: config[key] for key in shared}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"queries": None},
        {"queries": 1},
        {"queries": 7, "bias": True, "qkv_bias": True},
        {"num_hidden_layers": 3, "fc_bias": False},
        {"embedding": True, "rope_theta": 5e5, "rms_norm_eps": 1e-3},
        {"queries": None, "num_key_value_heads": 4, "qkv_bias": True},
        {"head_dim": 8, "output_bias": True},
        {"first_norm": True, "final_norm": True, "fc_bias": False},
        {"first_norm": True, "final_norm": True, "fc_bias": False, "queries": None},
    ],
    ids=str,
)
def test_every_kind_of_draft_survives_writing_and_reading(
    options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    draft = random_draft(**options).to(dtype)
    vispec.write(draft, tmp_path)
    again = registry.read(str(tmp_path), label="mine")
    assert again.config == draft.config
    assert again.dtype == dtype
    assert again.name == "mine"
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    ours, theirs = draft.state_dict(), again.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


NEMO = {
    "architectures": ["VispecDraftModel"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 20,
    "num_hidden_layers": 28,  # the target's
    "draft_num_hidden_layers": 1,
    "vispec_num_query_tokens": 3,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 0]},
}


def nemo_tensors() -> dict[str, Tensor]:
    """What NeMo AutoModel saves of a ViSpec draft, with its names."""
    torch.manual_seed(0)
    shapes = {
        "embed_tokens.weight": (20, 16),
        "fc.weight": (16, 32),
        "img_fc.weight": (16, 32),
        "img_adaptor.query": (3, 4, 4),
        **{f"img_adaptor.{name}_proj.weight": (16, 16) for name in "kvo"},
        "layers.0.input_layernorm.weight": (16,),
        "layers.0.post_attention_layernorm.weight": (16,),
        "layers.0.self_attn.q_proj.weight": (16, 16),
        "layers.0.self_attn.k_proj.weight": (8, 16),
        "layers.0.self_attn.v_proj.weight": (8, 16),
        "layers.0.self_attn.o_proj.weight": (16, 16),
        "layers.0.mlp.gate_proj.weight": (24, 16),
        "layers.0.mlp.up_proj.weight": (24, 16),
        "layers.0.mlp.down_proj.weight": (16, 24),
        "norm.weight": (16,),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_nemos_drafts_are_read_and_written_under_their_names(tmp_path: Path) -> None:
    tensors = nemo_tensors()
    draft = registry.read(folder_of(tmp_path / "nemo", tensors, NEMO))
    assert isinstance(draft, EagleDraft)
    assert draft.config.rope_theta == 1e6
    assert torch.equal(draft.adapter.q, tensors["img_adaptor.query"])
    vispec.write(draft, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert set(again) == set(tensors)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == NEMO["architectures"]
    assert config["vispec_num_query_tokens"] == 3


@torch.inference_mode()
def test_nemos_drafts_guess_behind_a_norm(tmp_path: Path) -> None:
    """Against the same network written out: every layer normed first, and the last one behind."""
    t = nemo_tensors()
    draft = registry.read(folder_of(tmp_path, t, NEMO))
    x, position = torch.randn(1, 5, 16), torch.arange(5)[None]

    def norm(rows: Tensor, name: str) -> Tensor:
        return rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6) * t[name]

    def heads(rows: Tensor, name: str, turned: bool) -> Tensor:
        made = (rows @ t[f"layers.0.self_attn.{name}_proj.weight"].T).view(5, -1, 4).transpose(0, 1)
        if not turned:
            return made
        angle = torch.arange(5)[:, None] * 1e6 ** (-torch.arange(0, 4, 2) / 4)
        cos, sin = torch.cat([angle] * 2, -1).cos(), torch.cat([angle] * 2, -1).sin()
        first, second = made.chunk(2, -1)
        return made * cos + torch.cat([-second, first], -1) * sin

    rows = norm(x[0], "layers.0.input_layernorm.weight")
    q, k, v = heads(rows, "q", True), heads(rows, "k", True), heads(rows, "v", False)
    scores = q @ k.repeat_interleave(2, 0).transpose(1, 2) / 2
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    seen = (scores.softmax(-1) @ v.repeat_interleave(2, 0)).transpose(0, 1).flatten(1)
    hidden = x[0] + seen @ t["layers.0.self_attn.o_proj.weight"].T
    rows = norm(hidden, "layers.0.post_attention_layernorm.weight")
    gate = rows @ t["layers.0.mlp.gate_proj.weight"].T
    inner = gate * gate.sigmoid() * (rows @ t["layers.0.mlp.up_proj.weight"].T)
    hidden = hidden + inner @ t["layers.0.mlp.down_proj.weight"].T
    expected = norm(hidden, "norm.weight")
    torch.testing.assert_close(draft(x, position)[0], expected, rtol=1e-4, atol=1e-4)


def test_what_is_written_beside_the_weights_is_kept(tmp_path: Path) -> None:
    vispec.write(random_draft(), tmp_path / "a" / "b", target="someone/model", tree={"size": 9})
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["target"] == "someone/model"
    assert config["tree"] == {"size": 9}
    assert config["architectures"] == ["ViSpecDraft"]


def test_writing_leaves_the_draft_as_it_was(tmp_path: Path) -> None:
    draft = random_draft()
    before = {name: tensor.clone() for name, tensor in draft.state_dict().items()}
    vispec.write(draft, tmp_path)
    assert all(parameter.requires_grad for parameter in draft.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in draft.state_dict().items())


def test_missing_unexpected_and_misshapen_tensors_are_all_listed_in_one_error(
    tmp_path: Path,
) -> None:
    vispec.write(random_draft(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["layers.0.mlp.up_proj.weight"], tensors["imadpt.o_proj.weight"]
    tensors["fc.weight"] = torch.zeros(16, 33)
    tensors["layers.0.self_attn.k_proj.weight"] = torch.zeros(16, 16)
    tensors["lm_head.weight"] = torch.zeros(20, 16)
    tensors["layers.1.mlp.up_proj.weight"] = torch.zeros(24, 16)
    folder = folder_of(tmp_path, tensors)
    for error in (_raised(folder), registry.plan_of(folder).problems(folder, shapes_in(folder))):
        assert error is not None
        assert set(error.missing) == {"layers.0.mlp.up_proj.weight", "imadpt.o_proj.weight"}
        assert set(error.unexpected) == {"lm_head.weight", "layers.1.mlp.up_proj.weight"}
        assert set(error.misshapen) == {
            "fc.weight: found [16, 33], expected [16, 32]",
            "layers.0.self_attn.k_proj.weight: found [16, 16], expected [8, 16]",
        }
        for name in (*error.missing, *error.unexpected, *error.misshapen):
            assert f"\n  {name}" in str(error)


def _raised(folder: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        registry.read(folder)
    return error.value


def test_a_whole_draft_has_no_problems(tmp_path: Path) -> None:
    vispec.write(random_draft(), tmp_path)
    assert registry.plan_of(tmp_path).problems("mine", shapes_in(str(tmp_path))) is None


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"]
)
def test_a_configuration_without_its_geometry_names_the_key(key: str, tmp_path: Path) -> None:
    vispec.write(random_draft(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="configuration without") as error:
        registry.read(str(tmp_path))
    assert error.value.missing == (key,)


def test_another_activation_is_refused_by_name(tmp_path: Path) -> None:
    vispec.write(random_draft(), tmp_path, hidden_act="gelu")
    with pytest.raises(CheckpointError, match="hidden_act 'gelu'"):
        registry.read(str(tmp_path))


def test_geometry_has_the_defaults_of_a_llama_configuration() -> None:
    required = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "vocab_size": 20,
    }
    bare = vispec.geometry(required)
    assert (bare.num_key_value_heads, bare.num_hidden_layers) == (4, 1)
    assert (bare.rms_norm_eps, bare.rope_theta) == (1e-6, 10000.0)
    assert vispec.geometry(required | {"rope_theta": 5.0}).rope_theta == 5.0
    newer = required | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    assert vispec.geometry(newer).rope_theta == 7.0


@pytest.mark.parametrize("case", CASES)
def test_recorded_drafts_are_recognised(case: str) -> None:
    config, tensors = recorded(case)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = "vispec" if any(name.startswith("imadpt.") for name in shapes) else "eagle"
    plan = vispec.plan(config, shapes, "recorded")
    assert plan is not None
    assert plan.form == expected


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"model.embed_tokens.weight": (20, 16)},
        {"fc.weight": (16, 48), "layers.0.self_attn.q_proj.weight": (16, 16)},
        {"fc.weight": (16, 32)},
        {
            "fc.weight": (16, 32),
            "layers.0.self_attn.q_proj.weight": (16, 16),
            "layers.0.hidden_norm.weight": (16,),
        },
    ],
)
def test_other_checkpoints_are_not_taken_for_drafts(shapes: dict[str, tuple[int, ...]]) -> None:
    assert vispec.plan({}, shapes, "other") is None


def test_a_structure_has_every_shape_and_no_weights(tmp_path: Path) -> None:
    draft = random_draft(queries=4)
    vispec.write(draft, tmp_path)
    structure = registry.plan_of(tmp_path).network
    assert all(parameter.is_meta for parameter in structure.parameters())
    ours, theirs = draft.state_dict(), structure.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_queries_that_stand_beside_an_images_tokens_are_read_as_such(tmp_path: Path) -> None:
    adapter = QueryAdapter(16, 4, 2, beside=True)
    vispec.write(EagleDraft(EagleConfig(16, 24, 4, 2, 20), adapter), tmp_path)
    again = registry.read(str(tmp_path))
    assert again.adapter.settings == adapter.settings
    assert again.adapter.keeps
    assert torch.equal(again.adapter.q, adapter.q.detach())


def test_an_adapter_of_rows_is_read_as_such(tmp_path: Path) -> None:
    settings = {"kind": "query", "heads": 4, "rows": True}
    vispec.write(EagleDraft(EagleConfig(16, 24, 4, 2, 20), build(settings, 16)), tmp_path)
    assert registry.read(str(tmp_path)).adapter.rows
