"""Drafts and targets at their published sizes, on the meta device: names, shapes, and the fit.

The lists of tensors are what the published repositories hold, written out from their formats.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen3Config,
)

from published import Shapes, dflash, eagle, eagle3, vispec
from vispec.checkpoints import registry
from vispec.errors import DraftMismatchError
from vispec.targets import Target, auto_class, wrap

LLAVA = LlavaConfig(
    text_config=LlamaConfig(vocab_size=32064, max_position_embeddings=4096),
    vision_config=CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    ),
    image_token_index=32000,
)
QWEN_VL = Qwen2_5_VLConfig(
    text_config={
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    },
    vision_config={"hidden_size": 1280, "out_hidden_size": 3584},
)
LLAMA = LlamaConfig(
    vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=8192
)
QWEN3 = Qwen3Config(
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
)
DRAFTS: dict[str, tuple[str, Any, dict[str, Any], Shapes]] = {
    "ViSpec for LLaVA-1.5-7B": (
        "vispec",
        LLAVA,
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "rms_norm_eps": 1e-5,
        },
        vispec(4096, 11008, 32, 32, 32064, bias=False),
    ),
    "ViSpec for Qwen2.5-VL-7B": (
        "vispec",
        QWEN_VL,
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_theta": 1e6,
        },
        vispec(3584, 18944, 28, 4, 152064, bias=True),
    ),
    "EAGLE-3 for Llama-3.1-8B": (
        "eagle3",
        LLAMA,
        {
            "architectures": ["LlamaForCausalLMEagle3"],
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "draft_vocab_size": 32000,
            "rope_theta": 5e5,
        },
        eagle3(4096, 14336, 8 * 128, 128256, 32000),
    ),
    "EAGLE for Llama-3-8B": (
        "eagle",
        LLAMA,
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "rope_theta": 5e5,
            "bias": False,
        },
        eagle(4096, 14336, 8 * 128, 128256, bias=False),
    ),
    "DFlash for Qwen3-8B": (
        "dflash",
        QWEN3,
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "block_size": 16,
            "num_target_layers": 36,
            "dflash_config": {"target_layer_ids": [1, 9, 17, 25, 33], "mask_token_id": 151669},
        },
        dflash(4096, 12288, 4096, 1024, 128, 5, 5),
    ),
}


def on_meta(config: Any) -> Target:
    with torch.device("meta"):
        return wrap(auto_class(config.model_type).from_config(config), None, "full size")


@pytest.mark.parametrize("name", DRAFTS)
def test_a_published_draft_has_the_names_and_shapes_that_are_expected(name: str) -> None:
    form, target, config, shapes = DRAFTS[name]
    plan = registry.plan(config, shapes, name)
    assert plan is not None
    assert plan.form == form
    assert plan.problems(name, shapes) is None
    assert all(parameter.is_meta for parameter in plan.network.parameters())
    plan.network.check(on_meta(target))  # type: ignore[operator]


def test_a_draft_of_another_size_is_told_everything_that_differs() -> None:
    _, _, config, shapes = DRAFTS["ViSpec for LLaVA-1.5-7B"]
    plan = registry.plan(config, shapes, "it")
    assert plan is not None
    with pytest.raises(DraftMismatchError) as error:
        plan.network.check(on_meta(QWEN_VL))  # type: ignore[operator]
    assert len(error.value.mismatches) == 2
    for number in ("4096", "3584", "32064", "152064"):
        assert number in str(error.value)


@pytest.mark.parametrize("config", [LLAVA, QWEN_VL, LLAMA, QWEN3], ids=lambda c: c.model_type)
def test_a_full_size_target_states_its_facts_and_its_cache(config: Any) -> None:
    target = on_meta(config)
    text = config.get_text_config()
    assert target.vocab_size == text.vocab_size
    assert target.hidden_size == text.hidden_size
    assert target.context_length == text.max_position_embeddings
    cache = target.new_cache(1, 64)
    layers, _, _, kv_heads, _, head_dim = cache.stores[0].shape
    assert (layers, kv_heads) == (text.num_hidden_layers, text.num_key_value_heads)
    assert head_dim * text.num_attention_heads >= text.hidden_size


# Configurations as these families' classes default to, which are those of released models.
RELEASED = [
    "llava_next", "llava_onevision", "llava_next_video", "video_llava", "qwen2_vl", "qwen3_vl",
    "qwen3_vl_moe", "qwen3_5", "internvl", "gemma3", "idefics3", "smolvlm", "mistral3", "glm46v",
    "lfm2_vl", "gemma4", "qwen3_5_moe", "glm4v", "glm4v_moe", "mixtral", "qwen2_moe", "qwen3_moe",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RELEASED)
def test_a_family_at_its_default_size_is_wrapped(model_type: str) -> None:
    target = on_meta(AutoConfig.for_model(model_type))
    assert len(target.decoder.layers) == target.text_config.num_hidden_layers
    cache = target.new_cache(1, 64)
    assert len(cache.layers) == target.text_config.num_hidden_layers
