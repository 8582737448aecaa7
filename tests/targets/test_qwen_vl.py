"""M-RoPE: positions are each prompt's own, whatever the model object remembers of another."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES, Family
from vispec.targets import wrap
from vispec.targets.qwen_vl import MropeTarget

MROPE = [f for f in FAMILIES if f.config["model_type"] in MropeTarget.model_types]
families = pytest.mark.parametrize("family", MROPE, ids=lambda family: family.name)


@families
def test_positions_are_those_that_generate_works_out(family: Family) -> None:
    """Of prompts with nothing, an image, images, a video; and of the next token behind them."""
    model = family.model()
    target = wrap(model, None)
    generator = torch.Generator().manual_seed(0)
    for shown in ([], ["image"], ["image", "image"], ["video"]):
        inputs = family.prompt(generator, shown)
        expected = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
        positions, offset = target.prompt_positions(target.prompt(dict(inputs)).inputs)
        assert torch.equal(positions, expected[1:])
        t = inputs["input_ids"].shape[1]
        assert t + offset == int(expected[1:, 0, -1].max()) + 1
        assert bool(offset) == bool(shown), "an image takes as many positions as tokens"


@families
def test_what_the_model_remembers_is_neither_read_nor_changed(family: Family) -> None:
    model = family.model()
    target = wrap(model, None)
    inputs = family.prompt(torch.Generator().manual_seed(1), ["image"])
    prompt = target.prompt(dict(inputs))
    memory = model.base_model.rope_deltas
    try:
        logits = []
        for remembered in (None, torch.tensor([[99]])):
            model.base_model.rope_deltas = remembered
            with torch.inference_mode():
                logits.append(target.prefill(prompt, target.new_cache(1, 200), 0).logits)
            assert model.base_model.rope_deltas is remembered
        assert torch.equal(*logits)
    finally:
        model.base_model.rope_deltas = memory


@families
@torch.inference_mode()
def test_slots_keep_their_own_offsets_when_they_move(family: Family) -> None:
    target = wrap(family.model(), None)
    generator = torch.Generator().manual_seed(2)
    cache = target.new_cache(2, 200)
    offsets = []
    for slot, shown in enumerate((["image"], ["image", "image"])):
        prompt = target.prompt(dict(family.prompt(generator, shown)))
        target.prefill(prompt, cache, slot)
        offsets.append(cache.offset[slot])
    assert offsets[0] != offsets[1]
    cache.move(1, 0)
    assert cache.offset == [offsets[1], 0]
