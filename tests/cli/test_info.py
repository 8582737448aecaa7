"""`vispec info` describes checkpoints by their headers and compares drafts with targets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo
from safetensors.torch import load_file
from transformers import AutoConfig

from command_line import Pair, Run, write_draft
from vispec.checkpoints import summary
from vispec.checkpoints.export import export
from vispec.cli.info import count, size
from vispec.drafts.block import BlockConfig, BlockNetwork


def test_a_target_is_described_by_its_true_numbers(run: Run, pair: Pair) -> None:
    tensors = load_file(pair.target / "model.safetensors")
    elements = sum(tensor.numel() for tensor in tensors.values())
    found = json.loads(run("info", pair.target, "--json").out)["checkpoints"][0]
    assert (found["kind"], found["form"], found["supported"]) == ("target", "llava", True)
    assert found["parameters"] == elements == sum(found["parts"].values())
    assert found["weights_bytes"] == 4 * elements
    assert found["stored_as"] == ["F32"]
    assert found["memory_bytes"]["bfloat16"] == 2 * elements
    assert found["context"] == 256
    # 2 layers, keys and values, 2 heads of 8 numbers of 2 bytes
    assert found["cache_bytes_per_token"] == 2 * 2 * 2 * 8 * 2


def test_a_draft_is_recognised_and_compared(run: Run, pair: Pair) -> None:
    ran = run("info", pair.draft, "--target", pair.target)
    assert ran.code == 0
    assert "kind: draft, vispec" in ran.out
    assert f"'{pair.draft}' fits '{pair.target}'" in ran.out


def test_a_draft_that_does_not_fit_is_told_all_that_differs(
    run: Run, pair: Pair, tmp_path: Path
) -> None:
    draft = write_draft(tmp_path / "other", 64, pair.vocabulary + 7)
    ran = run("info", draft, "--target", pair.target)
    assert ran.code == 1
    for word in ("does not fit", "64", str(pair.vocabulary + 7), str(pair.hidden)):
        assert word in ran.out
    answer = json.loads(run("info", draft, "--target", pair.target, "--json").out)
    assert answer["fits"] is False
    assert len(answer["mismatches"]) == 2


def test_a_target_is_not_compared_as_if_it_were_a_draft(run: Run, pair: Pair) -> None:
    ran = run("info", pair.target, "--target", pair.target)
    assert ran.code == 2
    assert "is not a draft" in ran.err


def test_a_family_without_a_file_is_described_all_the_same(
    run: Run, pair: Pair, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pair.target, tmp_path / "blip"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "from-the-future"}))
    ran = run("info", folder)
    assert ran.code == 0
    assert "from-the-future (vispec has no file for it)" in ran.out


def test_tensors_that_a_draft_lacks_are_listed(run: Run, pair: Pair, tmp_path: Path) -> None:
    draft = write_draft(tmp_path / "draft", pair.hidden, pair.vocabulary)
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    out = run("info", draft).out
    assert "problem: missing" in out
    assert "layers.1.self_attn.q_proj.weight" in out
    ran = run("info", draft, "--target", pair.target)
    assert ran.code == 1
    assert "cannot be loaded" in ran.out


def test_a_draft_of_another_model_of_the_same_shape_is_told(
    run: Run, pair: Pair, tmp_path: Path
) -> None:
    draft = write_draft(tmp_path / "draft", pair.hidden, pair.vocabulary)
    card = "---\nlicense: mit\nbase_model:\n- someone/vicuna-7b\n---\n"
    (draft / "README.md").write_text(card)
    ran = run("info", draft, "--target", pair.target)
    assert ran.code == 0
    assert "trained for: someone/vicuna-7b" in ran.out
    assert "it was trained for someone/vicuna-7b; if that is another model" in ran.out
    config = json.loads((draft / "config.json").read_text())
    same = {"target": f"someone/{pair.target.name}@v2"}
    (draft / "config.json").write_text(json.dumps(config | same))
    assert "it was trained" not in run("info", draft, "--target", pair.target).out


def test_a_block_draft_is_described_and_fits_but_cannot_draft(
    run: Run, pair: Pair, tmp_path: Path
) -> None:
    c = BlockConfig(pair.hidden, 64, 4, 2, pair.vocabulary, pair.vocabulary, 5, 3, (1, 2))
    export(BlockNetwork(c), tmp_path / "draft", "dflash")
    ran = run("info", tmp_path / "draft", "--target", pair.target)
    assert ran.code == 0
    assert "kind: draft, dflash (vispec cannot draft with it yet)" in ran.out
    assert "cannot draft with them" in ran.out
    found = json.loads(run("info", tmp_path / "draft", "--json").out)["checkpoints"][0]
    assert found["supported"] is False


@pytest.mark.parametrize(
    ("file", "text", "licence"),
    [
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: 'mine-1'\n---\n", "mine-1"),
        ("README.md", "# A model\nlicense: not in the header\n", None),
        ("LICENSE", "\n   MIT License\n\nCopyright ...", "MIT License"),
        ("LICENSE.md", "# Community Agreement\n", "Community Agreement"),
    ],
)
def test_the_licence_is_what_the_files_state(
    tmp_path: Path, file: str, text: str, licence: str | None
) -> None:
    (tmp_path / file).write_text(text)
    assert summary.licence(str(tmp_path)) == licence


def test_of_a_hub_repository_only_headers_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"fc.weight": TensorInfo(dtype="BF16", shape=[4, 8], data_offsets=(0, 64))}
    file = SafetensorsFileMetadata(metadata={}, tensors=tensors)
    repository = SafetensorsRepoMetadata(
        metadata=None, sharded=False, weight_map={}, files_metadata={"model.safetensors": file}
    )
    asked = []
    monkeypatch.setattr(summary, "is_offline_mode", lambda: False)
    monkeypatch.setattr(
        "huggingface_hub.get_safetensors_metadata",
        lambda name, revision: [repository, asked.append((name, revision))][0],
    )
    assert summary.read_headers("someone/model") == {"fc.weight": ((4, 8), "BF16")}
    summary.read_headers("someone/model@v2")
    assert asked == [("someone/model", None), ("someone/model", "v2")]


def test_sizes_are_written_for_people() -> None:
    assert [count(n) for n in (7, 12_345, 20_100_000, 7_060_000_000)] == [
        "7",
        "12.3 thousand",
        "20.1 million",
        "7.06 billion",
    ]
    assert [size(n) for n in (512, 66_300, 40_200_000, 14_100_000_000)] == [
        "512 bytes",
        "66.3 kB",
        "40.2 MB",
        "14.1 GB",
    ]


def test_draft_and_target_swapped_or_the_same_are_told(run: Run, pair: Pair) -> None:
    swapped = run("info", pair.target, "--target", pair.draft)
    assert swapped.code == 2
    assert "name the draft first" in swapped.err
    twice = run("info", pair.draft, "--target", pair.draft)
    assert twice.code == 2
    assert "is a draft, not a target" in twice.err


def test_a_recommended_tree_that_is_none_is_a_problem(run: Run, pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair.draft, tmp_path / "draft")
    file = tmp_path / "draft" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tree": {"size": -3}}))
    ran = run("info", tmp_path / "draft", "--target", pair.target)
    assert ran.code == 1
    assert "recommends a tree that is none" in ran.out


def test_an_adapter_is_described_as_the_target_it_makes(
    run: Run, pair: Pair, tmp_path: Path
) -> None:
    stated = {"base_model_name_or_path": str(pair.target), "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    found = json.loads(run("info", tmp_path, "--json").out)["checkpoints"][0]
    assert (found["name"], found["kind"], found["form"]) == (str(tmp_path), "target", "llava")
    assert found["trained_for"] == str(pair.target)
    assert run("info", pair.draft, "--target", tmp_path).code == 0


@pytest.mark.parametrize(
    ("model_type", "own", "kept"),
    [
        ("qwen3_5_text", {"layer_types": ["linear_attention", "full_attention"] * 2}, 2),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv", "conv"]}, 1),
        ("llama", {}, 4),
    ],
)
def test_layers_that_keep_no_keys_cost_no_cache(
    model_type: str, own: dict[str, Any], kept: int
) -> None:
    config = AutoConfig.for_model(
        model_type,
        num_hidden_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **own,
    )
    assert summary._cache_bytes_per_token(config) == kept * 2 * 2 * 8 * 2
