"""Fine-tuned and quantised targets work with the base model's draft, losslessly.

The reference is the changed model's own `generate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
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
def test_a_model_that_attends_by_flex_attention_says_its_own_text() -> None:
    """It is compiled for every shape it meets, and knows no float64 on processors."""
    model = tiny.llava(torch.float32, attention="flex_attention")
    draft = tiny.draft(torch.float32)
    engine = vispec.load(model, draft, processor=talking.processor(), tree=SHAPE)
    assert engine.target.tree_attention == "sdpa"
    own = [expected(model, question) for question in QUESTIONS]
    assert answers(engine) == own
    assert answers(engine, speculate=False) == own
