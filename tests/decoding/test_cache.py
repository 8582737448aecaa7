"""The slot cache holds what a list of tensors would hold, and any Hugging Face model can use it."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaModel

from trees import ancestors, depths, path, random_parents
from vispec.decoding.cache import READ_STEP, SlotCache

LAYERS, HEADS, HEAD_DIM = 2, 3, 4


def empty(slots: int, capacity: int = 150) -> SlotCache:
    return SlotCache(
        shapes=[(HEADS, HEAD_DIM)] * LAYERS,
        slots=slots,
        capacity=capacity,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )


class Naive:
    """Per slot, the tokens it has kept: tensors `[layers, 2, kv_heads, t, head_dim]`."""

    def __init__(self, slots: int) -> None:
        self.kept = [torch.zeros(LAYERS, 2, HEADS, 0, HEAD_DIM).double() for _ in range(slots)]


def written(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Keys and values of one pass, `[layers, 2, count, kv_heads, width, head_dim]`."""
    shape = (LAYERS, 2, count, HEADS, width, HEAD_DIM)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_random_sequences_of_passes_leave_what_lists_of_tensors_hold() -> None:
    for seed in range(100):
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        slots = draw.randint(1, 4)
        cache, naive = empty(slots), Naive(slots)
        for _ in range(draw.randint(3, 12)):
            if draw.random() < 0.2 and slots > 1:
                source, target = draw.randrange(slots), draw.randrange(slots)
                cache.move(source, target)
                if source != target:
                    naive.kept[target] = naive.kept[source]
                naive.kept[source] = naive.kept[source][..., :0, :]
            cache.widen(draw.choice((0, 100, cache.capacity + 1)))
            first = draw.randrange(slots)
            count, width = draw.randint(1, slots - first), draw.randint(1, 9)
            cache.window(first, count, width, exact=draw.random() < 0.3)
            new = written(count, width, generator)
            for layer in range(LAYERS):
                keys, values = cache.write(layer, new[layer, 0], new[layer, 1])
                assert keys.shape == values.shape == (count, HEADS, cache.read_length, HEAD_DIM)
                for row in range(count):
                    whole = torch.cat([naive.kept[first + row][layer], new[layer, :, row]], -2)
                    assert torch.equal(keys[row, :, : whole.shape[-2]], whole[0])
                    assert torch.equal(values[row, :, : whole.shape[-2]], whole[1])
            for row in range(count):
                nodes = sorted(draw.sample(range(width), draw.randint(1, width)))
                cache.keep(first + row, nodes)
                kept = new[:, :, row][..., nodes, :]
                naive.kept[first + row] = torch.cat([naive.kept[first + row], kept], -2)
            for slot in range(slots):
                t = cache.length[slot]
                assert torch.equal(cache.stores[0][:, :, slot, :, :t], naive.kept[slot])


def test_passes_behind_unkept_tokens_leave_those_alone() -> None:
    for seed in range(20):
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        b = draw.randint(1, 3)
        cache = empty(b)
        cache.length = [draw.randint(0, 30) for _ in range(b)]
        widths = [draw.randint(1, 5) for _ in range(3)]
        passes = []
        for index, width in enumerate(widths):
            cache.window(0, b, width, behind=sum(widths[:index]))
            new = written(b, width, generator)
            for layer in range(LAYERS):
                cache.write(layer, new[layer, 0], new[layer, 1])
            passes.append(new)
        whole = torch.cat(passes, -2)
        for slot in range(b):
            start = cache.length[slot]
            found = cache.stores[0][:, :, slot, :, start : start + sum(widths)]
            assert torch.equal(found, whole[:, :, slot])


def test_the_mask_shows_each_slot_its_own_past_and_its_block() -> None:
    for seed in range(100):
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        slots = draw.randint(1, 4)
        first = draw.randrange(slots)
        b = draw.randint(1, slots - first)
        n, behind = draw.randint(1, 8), draw.choice((0, 0, 3, 70))
        m = n + behind
        cache = empty(slots, capacity=260)
        cache.length = [draw.choice((0, 1, 63, 64, 65, draw.randint(0, 140))) for _ in range(slots)]
        block = torch.rand(b, n, m, generator=generator) < 0.5
        cache.window(first, b, n, behind=behind)
        mask = cache.attention_mask(block, torch.float32)
        assert mask.shape == (b, 1, n, cache.read_length)
        assert mask.dtype == torch.float32
        for row in range(b):
            kept = cache.length[first + row]
            for query in range(n):
                seen = [*range(kept), *(kept + c for c in range(m) if block[row, query, c])]
                expected = torch.full((cache.read_length,), torch.finfo(torch.float32).min)
                expected[seen] = 0
                assert torch.equal(mask[row, 0, query], expected)


def test_reads_are_rounded_up_but_never_past_the_end() -> None:
    cache = empty(1, capacity=150)
    assert cache.capacity % READ_STEP == 0
    assert cache.capacity >= 150
    for length in range(cache.capacity):
        cache.length = [length]
        cache.window(0, 1, 1)
        assert length + 1 <= cache.read_length <= cache.capacity
        assert cache.read_length % READ_STEP == 0
        cache.window(0, 1, 1, exact=True)
        assert cache.read_length == length + 1


def test_a_cache_that_is_widened_holds_more() -> None:
    cache = empty(2, capacity=3)
    cache.length[1] = cache.capacity
    with pytest.raises(ValueError, match="do not fit"):
        cache.window(1, 1, 1)
    cache.widen(cache.capacity + 1)
    assert cache.capacity % READ_STEP == 0
    cache.window(1, 1, 1)


def test_a_slot_that_is_full_says_so_with_both_numbers() -> None:
    cache = empty(2, capacity=READ_STEP)
    cache.length = [3, READ_STEP - 2]
    cache.window(0, 2, 2)
    with pytest.raises(ValueError, match=f"{READ_STEP + 1} positions do not fit.*{READ_STEP}"):
        cache.window(0, 2, 3)
    with pytest.raises(ValueError, match="do not fit"):
        cache.window(0, 1, 60, behind=2)
    cache.window(0, 1, 61)


def test_moving_a_slot_onto_itself_empties_it() -> None:
    cache = empty(2)
    cache.length = [4, 7]
    cache.move(1, 1)
    assert cache.length == [4, 0]


# --- With a model that knows nothing of it --------------------------------------------------------


def llama(attention: str) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
    )
    model = LlamaModel._from_config(config, attn_implementation=attention).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def for_model(model: LlamaModel, slots: int) -> SlotCache:
    return SlotCache(
        shapes=[(2, HEAD_DIM)] * LAYERS,
        slots=slots,
        capacity=200,
        dtype=torch.float64,
        device=model.device,
    )


def prefilled(model: LlamaModel, cache: SlotCache, prompts: list[Tensor]) -> list[Tensor]:
    """Hidden states of every prompt, read into its slot."""
    found = []
    for slot, ids in enumerate(prompts):
        cache.window(slot, 1, len(ids), exact=True)
        positions = torch.arange(len(ids))[None]
        out = model(input_ids=ids[None], position_ids=positions, past_key_values=cache)
        cache.keep(slot, range(len(ids)))
        found.append(out.last_hidden_state[0])
    return found


# The eager attention of transformers takes its softmax in float32 whatever the model's type.
@pytest.mark.parametrize(("attention", "rounding"), [("sdpa", 1e-12), ("eager", 2e-6)])
@torch.inference_mode()
def test_trees_of_several_slots_are_what_one_text_at_a_time_gives(
    attention: str, rounding: float
) -> None:
    """Prefill, verify a tree a slot in one pass, keep a path, and verify again."""
    model, n = llama(attention), 11
    generator = torch.Generator().manual_seed(1)
    draw = random.Random(2)
    texts = [torch.randint(50, (t,), generator=generator) for t in (5, 70, 1, 33)]
    cache = for_model(model, len(texts))
    for text, hidden in zip(texts, prefilled(model, cache, texts), strict=True):
        expected = model(text[None], past_key_values=DynamicCache()).last_hidden_state[0]
        torch.testing.assert_close(hidden, expected, rtol=0, atol=rounding)
    for _ in range(3):
        b = len(texts)
        parent = random_parents(b, n, generator)
        token = torch.randint(50, (b, n), generator=generator)
        cache.window(0, b, n)
        starts = torch.tensor(cache.starts)
        assert cache.starts == [len(text) for text in texts]
        hidden = model(
            input_ids=token,
            position_ids=starts[:, None] + depths(parent),
            attention_mask=cache.attention_mask(ancestors(parent), torch.float64),
            past_key_values=cache,
        ).last_hidden_state
        for slot in range(b):
            for node in range(n):
                nodes = path(parent[slot].tolist(), node)
                whole = torch.cat([texts[slot], token[slot, nodes]])
                past = DynamicCache()
                for part in whole.split(40):
                    expected = model(part[None], past_key_values=past).last_hidden_state
                torch.testing.assert_close(
                    hidden[slot, node], expected[0, -1], rtol=0, atol=rounding
                )
            accepted = path(parent[slot].tolist(), draw.randrange(n))
            cache.keep(slot, accepted)
            texts[slot] = torch.cat([texts[slot], token[slot, accepted]])


@torch.inference_mode()
def test_a_slot_takes_a_new_prompt_after_its_old_one_has_moved() -> None:
    model = llama("sdpa")
    generator = torch.Generator().manual_seed(3)
    first, second, third = (torch.randint(50, (t,), generator=generator) for t in (40, 12, 9))
    cache = for_model(model, 2)
    prefilled(model, cache, [first, second])
    cache.move(1, 0)
    assert cache.length == [12, 0]
    cache.window(1, 1, len(third), exact=True)
    positions = torch.arange(len(third))[None]
    hidden = model(third[None], position_ids=positions, past_key_values=cache).last_hidden_state
    cache.keep(1, range(len(third)))
    torch.testing.assert_close(hidden, model(third[None]).last_hidden_state, rtol=0, atol=1e-12)
    token = torch.tensor([[4], [5]])
    cache.window(0, 2, 1)
    hidden = model(
        token,
        position_ids=torch.tensor([[12], [9]]),
        attention_mask=cache.attention_mask(torch.ones(2, 1, 1, dtype=torch.bool), torch.float64),
        past_key_values=cache,
    ).last_hidden_state
    for row, text in enumerate((second, third)):
        whole = torch.cat([text, token[row]])
        expected = model(whole[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(hidden[row, 0], expected, rtol=0, atol=1e-12)


def test_it_is_a_transformers_cache_with_a_layer_for_each_decoder_layer() -> None:
    cache = empty(2, capacity=100)
    assert len(cache.layers) == LAYERS
    cache.length = [7, 9]
    cache.window(1, 1, 4)
    assert cache.get_seq_length() == 9
    assert cache.get_mask_sizes(4, 0) == (cache.read_length, 0)
    assert all(layer.get_max_length() == cache.capacity for layer in cache.layers)
