"""A model that drafts proposes what it would say itself, and never changes what is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import talking
import tiny
from trees import path
from vispec.decoding.engine import Engine, Request
from vispec.decoding.sampling import Sampling
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.language_model import LanguageModelDraft
from vispec.errors import DraftMismatchError
from vispec.targets import Target, wrap


def text_model(seed: int = 5, **options: Any) -> Target:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": tiny.VOCAB,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes | options)).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return wrap(model, None, "drafting")


def draft(kind: str) -> LanguageModelDraft:
    if kind == "text":
        return LanguageModelDraft(text_model())
    if kind == "blind":
        return LanguageModelDraft(talking.target(seed=7), sees=False)
    return LanguageModelDraft(talking.target(seed=7))


@pytest.mark.parametrize("kind", ["text", "blind", "seeing"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_the_targets_own(kind: str, temperature: float) -> None:
    engine = Engine(talking.target(), draft(kind), tree=TreeShape(9, 3, 3), max_batch=2)
    sampling = Sampling(max_new_tokens=20, temperature=temperature, seed=4)
    asked = [Request("the cat", [talking.picture(i)] * (i % 3), sampling) for i in range(5)]
    plain = [engine.generate(one, speculate=False).token_ids for one in asked]
    assert [result.token_ids for result in engine.generate(asked)] == plain


def test_a_target_that_drafts_for_itself_is_always_right() -> None:
    target = talking.target()
    draft = LanguageModelDraft(talking.target())
    engine = Engine(target, draft, tree=TreeShape.chain(3), sampled=SampledShape((1, 1, 1)))
    for images in ([], [talking.picture(1)], [talking.picture(1), talking.picture(2)]):
        for temperature, accept in ((0.0, "keyed"), (1.0, "stochastic")):
            wishes = {"max_new_tokens": 21, "temperature": temperature, "seed": 1}
            result = engine.generate("the cat", images, accept=accept, **wishes)  # type: ignore[call-overload]
            if result.finish_reason == "length":
                assert result.stats.target_passes == 5


@pytest.mark.parametrize("kind", ["text", "blind", "seeing"])
@torch.inference_mode()
def test_every_node_is_what_the_model_itself_thinks_of_its_path(kind: str) -> None:
    """Several requests, cycle after cycle, against the drafting model's own forward."""
    target, drafting, shape = talking.target(), draft(kind), TreeShape(10, 3, 3)
    session = drafting.session(target, 2, 200)
    cache = target.new_cache(2, 200)
    prompts = [
        target.encode(words, [talking.picture(i) for i in range(count)])
        for words, count in (("the cat", 1), ("a b c d", 2))
    ]
    texts: list[list[int]] = []
    for slot, prompt in enumerate(prompts):
        prefill = target.prefill(prompt, cache, slot)
        session.begin(slot, prompt, prefill, 5 + slot)
        shown = drafting.sees or kind == "seeing"
        kept = [t for t, i in zip(prompt.ids, prefill.image_index.tolist(), strict=True)
                if shown or i < 0]  # fmt: skip
        texts.append([*kept, 5 + slot])
    for said in ([[7, 8], [9]], [[3], [4, 5, 6]], [[11], [12]]):
        roots = torch.tensor([text[-1] for text in texts])
        tree = session.propose(roots, shape, None)
        for slot, text in enumerate(texts):
            parent, token = tree.parent[slot].tolist(), tree.token[slot].tolist()
            for node in range(1, tree.size):
                way, score = [token[at] for at in path(parent, node)[1:]], 0.0
                if drafting.sees and tiny.IMAGE_TOKEN in way:
                    continue  # what it said has no pixels, which its own forward counts
                ids = torch.tensor([text + way])
                given = dict(prompts[slot].inputs) if drafting.sees else {}
                given = {k: v for k, v in given.items() if k == "pixel_values"}
                logits = drafting.model.model(input_ids=ids, **given).logits[0].log_softmax(-1)
                for place, one in enumerate(way):
                    score += logits[len(text) - 1 + place, one].item()
                assert tree.logprob[slot, node].item() == pytest.approx(score, abs=1e-5)
        session.advance([list(range(len(row))) for row in said], said, torch.empty(0))
        for text, row in zip(texts, said, strict=True):
            text += row


@torch.inference_mode()
def test_one_that_is_nearly_full_does_not_stop_another_that_has_much_to_read() -> None:
    """As where a lookup served both for a while, and one of them more."""
    drafting = LanguageModelDraft(text_model())
    target = talking.target()
    session = drafting.session(target, 2, 60)
    cache, capacity = target.new_cache(2, 60), session.cache.capacity
    texts: list[list[int]] = []
    for slot, words in enumerate(("the cat", "a b c d")):
        prompt = target.encode(words)
        session.begin(slot, prompt, target.prefill(prompt, cache, slot), 5)
        texts.append([*prompt.ids, 5])
    much = [3 + i % 9 for i in range(40)]
    near = [4 + i % 7 for i in range(capacity - len(texts[1]) - 3)]
    session.advance([[], []], [[], near], torch.empty(0))
    texts[1] += near
    session.read(2)
    for slot, said in enumerate((much, [8, 9])):
        texts[slot] += said
        session.unread[slot] += said
    found = session.read(2)
    for text, logits in zip(texts, found, strict=True):
        whole = drafting.model.model(input_ids=torch.tensor([text])).logits[0, -1]
        torch.testing.assert_close(logits, whole, rtol=0, atol=1e-9)
    assert session.cache.length == [len(text) for text in texts]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: text_model(vocab_size=50), ["50", str(tiny.VOCAB)]),
        (lambda: wrap(_sliding(), None), ["sliding_attention"]),
    ],
)
def test_a_model_that_cannot_draft_is_told_why(model: Any, words: list[str]) -> None:
    with pytest.raises(DraftMismatchError) as error:
        LanguageModelDraft(model()).check(talking.target())
    assert all(word in str(error.value) for word in words)


def _sliding() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(
        MistralConfig(
            vocab_size=tiny.VOCAB,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=7,
        )
    )
