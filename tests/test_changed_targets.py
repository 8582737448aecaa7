"""Fine-tuned and quantised targets work with the base model's draft, losslessly.

The reference is the changed model's own `generate`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, TorchAoConfig

import talking
import tiny
import vispec
from vispec.decoding.tree import TreeShape
from vispec.errors import CheckpointError

QUESTIONS = ["the cat", "what is it ?", "a b c d"]
SHAPE = TreeShape(9, 3, 3)


def tuned(seed: int = 0) -> Any:
    """A LLaVA with adapters that change what it says."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(tiny.llava(), config).to(torch.float64).eval()


def expected(model: Any, question: str, **options: Any) -> list[int]:
    target = talking.target()
    inputs = dict(target.encode(question, [talking.picture(3)]).inputs)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    out = model.generate(**inputs, max_new_tokens=16, do_sample=False, **options)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def answers(engine: vispec.Engine, **options: Any) -> list[list[int]]:
    wishes = {"max_new_tokens": 16, "temperature": 0} | options
    return [
        engine.generate(question, [talking.picture(3)], **wishes).token_ids
        for question in QUESTIONS
    ]


def test_an_adapted_model_says_its_own_text_with_the_base_models_draft() -> None:
    model = tuned()
    engine = vispec.load(model, tiny.draft(), processor=talking.processor(), tree=SHAPE)
    own = [expected(model, question) for question in QUESTIONS]
    base = [expected(tiny.llava(), question) for question in QUESTIONS]
    assert own != base, "the adapters change nothing"
    assert answers(engine) == own
    sampled = answers(engine, temperature=1.0, seed=5)
    assert sampled == answers(engine, temperature=1.0, seed=5, speculate=False)


def test_an_adapter_on_disk_is_put_into_its_base(tmp_path: Path) -> None:
    base = talking.save(tmp_path / "base", torch.float64)
    model = tuned()
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    engine = vispec.load(tmp_path / "adapter", tiny.draft(), tree=SHAPE)
    assert engine.target.name == str(tmp_path / "adapter")
    assert answers(engine) == [expected(model, question) for question in QUESTIONS]
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        vispec.load(tmp_path / "adapter")


@pytest.mark.parametrize("kind", ["dora", "heads", "rslora"])
def test_adapters_of_every_kind_say_on_disk_what_they_say_in_memory(
    kind: str, tmp_path: Path
) -> None:
    own = {"dora": {"use_dora": True}, "heads": {"modules_to_save": ["lm_head"]}}
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "up_proj"],
        init_lora_weights=False,
        use_rslora=kind == "rslora",
        **own.get(kind, {}),
    )
    torch.manual_seed(0)
    base = talking.save(tmp_path / "base", torch.float64)
    model = get_peft_model(tiny.llava(), config).to(torch.float64).eval()
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name or "magnitude" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    engine = vispec.load(tmp_path / "adapter", tiny.draft(), tree=SHAPE)
    own_text = [expected(model, question) for question in QUESTIONS]
    assert own_text != [expected(tiny.llava(), question) for question in QUESTIONS]
    assert answers(engine) == own_text


def adapter(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    base = talking.save(tmp_path / "base", torch.float64)
    model = tuned()
    model.peft_config["default"].base_model_name_or_path = str(base)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    return folder, load_file(folder / "adapter_model.safetensors")


def test_an_adapter_that_lacks_tensors_or_has_others_is_refused(tmp_path: Path) -> None:
    folder, tensors = adapter(tmp_path)
    first, *rest = sorted(tensors)
    for changed, word in (
        ({key: tensors[key] for key in rest}, "missing"),
        (tensors | {first.replace("layers.0", "layers.9"): tensors[first].clone()}, "unexpected"),
        ({f"other.{key}": value for key, value in tensors.items()}, "missing"),
    ):
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=word):
            vispec.load(folder)


def test_a_pickled_adapter_is_read_where_that_is_insisted_on(tmp_path: Path) -> None:
    folder, tensors = adapter(tmp_path)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin.*allow_pickle"):
        vispec.load(folder)
    engine = vispec.load(folder, allow_pickle=True)
    assert answers(engine) == [expected(tuned(), question) for question in QUESTIONS]


def test_an_adapter_of_nothing_is_told(tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="does not say of which model"):
        vispec.load(folder)


def test_a_pinned_adapter_takes_its_pinned_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hub repositories that were downloaded before, each in the revision asked for."""
    folder, _ = adapter(tmp_path)
    file = folder / "adapter_config.json"
    pins = {"base_model_name_or_path": "someone/base", "revision": "v2"}
    file.write_text(json.dumps(json.loads(file.read_text()) | pins))
    hub = tmp_path / "hub"
    for name, revision, source in (("base", "v2", tmp_path / "base"), ("tuned", "v1", folder)):
        repository = hub / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / revision).write_text("0" * 40)
        shutil.copytree(source, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    engine = vispec.load("someone/tuned@v1")
    assert answers(engine) == [expected(tuned(), question) for question in QUESTIONS]


def test_merged_adapters_are_the_model() -> None:
    own = [expected(tuned(), question) for question in QUESTIONS]
    merged = tuned().merge_and_unload()
    engine = vispec.load(merged, tiny.draft(), processor=talking.processor(), tree=SHAPE)
    assert answers(engine) == own


def test_inside_an_adapted_models_own_generate() -> None:
    model, way = tuned(), vispec.speculative(tiny.draft(), SHAPE)
    for question in QUESTIONS:
        assert expected(model, question, custom_generate=way) == expected(model, question)


def test_learned_prompts_are_refused() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    decoder = LlamaForCausalLM(tiny.llava().config.text_config)
    model = get_peft_model(decoder, config)
    with pytest.raises(CheckpointError, match="learns prompts"):
        vispec.load(model, processor=talking.processor())


def test_a_quantised_model_is_loaded_and_says_its_own_text(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    folder = talking.save(tmp_path)
    quantised = TorchAoConfig(
        quantization.Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head", "vision_tower"]
    )
    engine = vispec.load(
        folder, tiny.draft(torch.float32), dtype=torch.float32, quantization_config=quantised
    )
    weight = engine.target.decoder.layers[0].mlp.up_proj.weight
    assert "Int8" in type(weight).__name__ or "Affine" in type(weight).__name__
    own = [expected(engine.target.model, question) for question in QUESTIONS]
    assert answers(engine) == own
    assert answers(engine, speculate=False) == own


@pytest.mark.slow
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "AVX2",
    reason="there torch 2.13's flex attention itself gives nan for some lengths (24, 40)",
)
def test_a_model_that_attends_by_flex_attention_says_its_own_text() -> None:
    """It is compiled for every shape it meets, and knows no float64 on processors."""
    model = tiny.llava(torch.float32, attention="flex_attention")
    draft = tiny.draft(torch.float32)
    engine = vispec.load(model, draft, processor=talking.processor(), tree=SHAPE)
    assert engine.target.tree_attention == "sdpa"
    own = [expected(model, question) for question in QUESTIONS]
    assert answers(engine) == own
    assert answers(engine, speculate=False) == own
