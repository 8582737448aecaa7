"""A target turns conversations into what its model wants, and runs it as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch import Tensor
from transformers import AttentionInterface, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import talking
import tiny
from trees import depths, path, random_parents
from vispec.decoding.tree import Tree
from vispec.errors import PromptTooLongError, UnsupportedFamilyError
from vispec.targets import FAMILIES, family, wrap
from vispec.targets.batches import split_batch


def test_an_unknown_family_is_told_the_supported_ones() -> None:
    with pytest.raises(UnsupportedFamilyError) as error:
        family("blip-2", "someone/model")
    message = str(error.value)
    assert "'blip-2'" in message
    assert "someone/model" in message
    assert all(name in message for name in FAMILIES)


def test_a_text_model_shows_nothing() -> None:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    target = wrap(LlamaForCausalLM(config), None)
    assert (target.image_index({"input_ids": torch.tensor([[1, 2, 3]])}, {}) == -1).all()


@torch.inference_mode()
def test_an_attention_that_takes_no_mask_serves_prompts_and_another_one_trees() -> None:
    widths: list[int] = []

    def causal_only(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        key, value, mask = args
        assert mask is None
        widths.append(query.shape[2])
        kwargs["is_causal"] = query.shape[2] > 1
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("causal_only", causal_only)
    model = tiny.llava()
    assert wrap(model, None).tree_attention is None
    model.config.text_config._attn_implementation = "causal_only"
    target = wrap(model, None)
    assert target.tree_attention == "sdpa"
    inputs = tiny.inputs(torch.Generator().manual_seed(0), 1)
    prompt, cache = target.prompt(dict(inputs)), target.new_cache(1, 100)
    target.prefill(prompt, cache, 0)
    assert widths == [len(prompt)] * 2
    parent = torch.tensor([[-1, 0, 0, 1]])
    tree = Tree(torch.tensor([[4, 5, 6, 7]]), parent, depths(parent), 2, torch.zeros(1, 4))
    found = target.verify(tree, cache)
    assert len(widths) == 2, "the tree was attended to without its mask"
    assert target.text_config._attn_implementation == "causal_only"
    reference = tiny.target()
    same = reference.new_cache(1, 100)
    reference.prefill(reference.prompt(dict(inputs)), same, 0)
    expected = reference.verify(tree, same)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_a_users_own_hook_on_the_decoder_runs_once_a_prompt() -> None:
    model = tiny.llava()
    target = wrap(model, talking.processor())
    seen: list[int] = []
    hook = target.decoder.register_forward_pre_hook(lambda module, args: seen.append(1))
    prompt = target.encode("the cat", [talking.picture(0)])
    target.prefill(prompt, target.new_cache(1, len(prompt) + 4), 0)
    hook.remove()
    assert seen == [1]


def test_facts_are_the_models_own() -> None:
    model = tiny.llava()
    target = wrap(model, talking.processor())
    assert target.embedding is model.get_input_embeddings()
    assert target.head is model.get_output_embeddings()
    assert target.tokenizer is talking.processor().tokenizer
    assert (target.hidden_size, target.vocab_size) == (tiny.HIDDEN, tiny.VOCAB)
    assert target.context_length == 256
    assert target.dtype == torch.float64
    assert target.model_type == "llava"


@pytest.mark.parametrize(
    ("stated", "expected"), [(2, {2}), ([2, 16], {2, 16}), (None, {2}), (0, {0})]
)
def test_ends_of_sequence_are_the_checkpoints(stated: Any, expected: set[int]) -> None:
    """Without one in the generation configuration, the text model's own."""
    target = wrap(tiny.llava(), None)
    target.model.generation_config = GenerationConfig(eos_token_id=stated)
    assert target.eos_token_ids == expected


def test_without_any_end_of_sequence_there_is_none() -> None:
    target = wrap(tiny.llava(eos_token_id=None), None)
    target.model.generation_config = GenerationConfig()
    assert target.eos_token_ids == set()


# --- Prompts --------------------------------------------------------------------------------------


def beginning() -> Any:
    """A processor whose tokenizer begins every text with <s> by itself."""
    made = copy.deepcopy(talking.processor())
    made.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return made


def test_the_first_token_is_never_doubled() -> None:
    model, own = tiny.llava(), beginning()
    assert own.tokenizer("a").input_ids[0] == 1
    for processor in (own, talking.processor()):
        ids = wrap(model, processor).encode("the cat", [talking.picture(0)]).ids
        assert ids.count(1) == 1
        assert ids[0] == 1
    silent = copy.deepcopy(own)
    silent.chat_template = talking.TEMPLATE.removeprefix("{{ bos_token }}")
    assert wrap(model, silent).encode("the cat", [talking.picture(0)]).ids == ids


def test_a_string_is_a_message_with_its_pictures_first() -> None:
    target = talking.target()
    images = [talking.picture(0), talking.picture(1)]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what ?"}]
    spelled = target.encode([{"role": "user", "content": content}], images)
    assert target.encode("what ?", images).ids == spelled.ids


def test_inputs_take_the_models_type_but_tokens_stay_whole_numbers() -> None:
    prompt = talking.target(torch.float64).encode("a", [talking.picture(0)])
    assert prompt.inputs["pixel_values"].dtype == torch.float64
    assert prompt.inputs["input_ids"].dtype == torch.long
    assert len(prompt) == len(prompt.ids) == prompt.inputs["input_ids"].shape[1]


def test_a_prompt_must_leave_room_for_a_token() -> None:
    target = wrap(tiny.llava(max_position_embeddings=20), None)
    target.prompt({"input_ids": torch.ones(1, 19, dtype=torch.long)})
    for length in (20, 21, 500):
        with pytest.raises(PromptTooLongError, match=f"takes {length} tokens.*holds 20"):
            target.prompt({"input_ids": torch.ones(1, length, dtype=torch.long)})


def test_a_row_of_a_text_batch_is_its_unpadded_tokens() -> None:
    target = wrap(tiny.llava(), None)
    ids = torch.tensor([[0, 0, 1, 5], [1, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    rows = split_batch(target, ids, {"attention_mask": mask})
    assert [row["input_ids"].tolist() for row in rows] == [[[1, 5]], [[1, 6, 7, 8]]]
    assert [row["input_ids"].tolist() for row in split_batch(target, ids, {})] == ids[
        :, None
    ].tolist()


# --- Running --------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_prefill_is_the_models_own_forward_and_shows_what_it_saw() -> None:
    generator = torch.Generator().manual_seed(0)
    target = tiny.target()
    for images in range(3):
        inputs = tiny.inputs(generator, images)
        prompt = target.prompt(dict(inputs))
        cache = target.new_cache(2, 100)
        found = target.prefill(prompt, cache, 1)
        out = target.model(**inputs, output_hidden_states=True)
        torch.testing.assert_close(found.logits, out.logits[:, -1], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.features, out.hidden_states[-1][0], rtol=0, atol=1e-12)
        assert torch.equal(found.embeddings, out.hidden_states[0][0])
        assert cache.length == [0, len(prompt)]
        assert found.vision_s >= 0
        assert found.decoder_s > 0


def test_a_failed_prefill_leaves_no_hook_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    target = wrap(tiny.llava(), None)
    prompt = target.prompt({"input_ids": torch.tensor([[1, 2, 3]])})
    hooks = [len(m._forward_pre_hooks) for m in target.model.modules()]

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(type(target.decoder.norm), "forward", fails)
    with pytest.raises(MemoryError):
        target.prefill(prompt, target.new_cache(1, 10), 0)
    assert [len(m._forward_pre_hooks) for m in target.model.modules()] == hooks


@torch.inference_mode()
def test_verified_trees_are_what_the_model_says_of_each_path_alone() -> None:
    """Of several requests at once, with different numbers of pictures."""
    generator = torch.Generator().manual_seed(1)
    target, n = tiny.target(), 9
    asked = [tiny.inputs(generator, images, text=4 + 3 * images) for images in range(3)]
    cache = target.new_cache(3, 120)
    for slot, inputs in enumerate(asked):
        target.prefill(target.prompt(dict(inputs)), cache, slot)
    parent = random_parents(3, n, generator)
    token = torch.randint(3, tiny.IMAGE_TOKEN, (3, n), generator=generator)
    depth = depths(parent)
    tree = Tree(token, parent, depth, int(depth.max()), torch.zeros(3, n))
    found = target.verify(tree, cache)
    for slot, inputs in enumerate(asked):
        for node in range(n):
            said = token[slot, path(parent[slot].tolist(), node)]
            ids = torch.cat([inputs["input_ids"], said[None]], 1)
            out = target.model(**(inputs | {"input_ids": ids}), output_hidden_states=True)
            expected = (out.logits[0, -1], out.hidden_states[-1][0, -1])
            for ours, theirs in zip(
                (found.logits[slot, node], found.features[slot, node]), expected, strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@torch.inference_mode()
def test_nodes_that_stand_for_nothing_change_no_other_node() -> None:
    target = tiny.target()
    prompt = target.prompt({"input_ids": torch.tensor([[1, 5, 6]])})
    parent = torch.tensor([[-1, 0, 0, 1]])
    tree = Tree(torch.tensor([[4, 5, 6, 7]]), parent, depths(parent), 2, torch.zeros(1, 4))
    gone = Tree(torch.tensor([[4, 5, -1, 7]]), parent, depths(parent), 2, torch.zeros(1, 4))
    logits = []
    for each in (tree, gone):
        cache = target.new_cache(1, 20)
        target.prefill(prompt, cache, 0)
        logits.append(target.verify(each, cache).logits[0, [0, 1, 3]])
    assert torch.equal(*logits)
