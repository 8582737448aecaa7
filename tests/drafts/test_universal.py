"""A model with another vocabulary proposes text; what is said stays the target's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import talking
import tiny
from drafts.test_language_model import text_model
from vispec.decoding.engine import Engine, Request
from vispec.decoding.sampling import Sampling
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.universal import UniversalDraft, UniversalSession
from vispec.errors import DraftMismatchError
from vispec.targets.base import Prefill, Prompt

TOKENIZERS = {
    "bytes": talking.byte_level,
    "sentencepiece": talking.sentencepiece,
    "the same": talking.tokenizer,
}


def draft(kind: str) -> UniversalDraft:
    tokenizer = TOKENIZERS[kind]()
    model = text_model(vocab_size=len(tokenizer) + 3, max_position_embeddings=1024)
    model.tokenizer = tokenizer
    return UniversalDraft(model)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("temperature", "accept"), [(0.0, "keyed"), (1.0, "stochastic")])
def test_the_text_is_the_targets_own(kind: str, temperature: float, accept: str) -> None:
    engine = Engine(
        talking.target(),
        draft(kind),
        tree=TreeShape(9, 3, 3),
        sampled=SampledShape((1, 1)),
        max_batch=2,
    )
    sampling = Sampling(max_new_tokens=16, temperature=temperature, seed=4)
    asked = [Request("the cat", [talking.picture(i)] * (i % 3), sampling) for i in range(5)]
    plain = [engine.generate(one, speculate=False).token_ids for one in asked]
    results = engine.generate(asked, accept=accept)  # type: ignore[call-overload]
    assert [result.token_ids for result in results] == plain


class Scripted(UniversalSession):
    """Knows how every text goes on."""

    script = "the cat in the hat, a thing there."

    def read(self, b: int) -> Tensor:
        logits = super().read(b)
        self.ahead: list[Iterator[int]] = []
        for slot in range(b):
            ids = self.ours.encode(self.script, add_special_tokens=False)
            known = [i for i in self.read_ids[slot] if i not in self.ours.all_special_ids]
            assert self.script.startswith(self.ours.decode(known).lstrip())
            self.ahead.append(iter(ids[len(known) :] + [self.ours.eos_token_id] * 20))
        return self.told(logits)

    def expander(self, b: int, width: int) -> Any:
        inner = super().expander(b, width)

        def expand(token: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
            return self.told(inner(token, origin, seen)[:, 0])[:, None]

        return expand

    def told(self, logits: Tensor) -> Tensor:
        following = torch.tensor([[next(ahead)] for ahead in self.ahead])
        return torch.zeros_like(logits).scatter_(1, following, 9.0)


@pytest.mark.parametrize("kind", TOKENIZERS)
@torch.inference_mode()
def test_text_is_proposed_in_the_targets_tokens(kind: str) -> None:
    target = talking.target()
    session = Scripted(draft(kind), target, 1, 200)
    whole = target.tokenizer.encode(Scripted.script, add_special_tokens=False)
    place, proposed = 3, 0
    index = torch.full((place - 1,), -1)
    prefill = Prefill(torch.empty(0), torch.empty(0), torch.empty(0), index, 0, 0)
    session.begin(0, Prompt(whole[: place - 1], {}), prefill, whole[place - 1])
    while place < len(whole) - 6:
        tree = session.propose(torch.tensor(whole[place - 1 : place]), TreeShape(7, 6, 1), None)
        tokens = [token for token in tree.token[0, 1:].tolist() if token >= 0]
        # A token's end may be the beginning of a longer one of the other vocabulary.
        right = sum(1 for a, b in zip(tokens, whole[place:], strict=False) if a == b)
        assert right >= len(tokens) - 1
        proposed += right
        taken = right + 1
        session.advance([list(range(taken))], [whole[place : place + taken]], torch.empty(0))
        place += taken
    assert proposed > len(whole) // 3


@torch.inference_mode()
def test_a_text_of_many_more_tokens_than_the_targets_fits() -> None:
    target = talking.target()
    target.tokenizer = copy.deepcopy(target.tokenizer)
    word = target.tokenizer.add_tokens("abcdefghij" * 4) and len(target.tokenizer) - 1
    session = draft("bytes").session(target, 1, 16)
    index = torch.full((2,), -1)
    prefill = Prefill(torch.empty(0), torch.empty(0), torch.empty(0), index, 0, 0)
    session.begin(0, Prompt([word] * 2, {}), prefill, word)
    for _ in range(3):
        session.propose(torch.tensor([word]), TreeShape(4, 3, 1), None)
        session.advance([[0]], [[word]], torch.empty(0))
    assert len(session.read_ids[0]) == 5 * 40 > 4 * 16


def test_models_without_tokenizers_are_refused() -> None:
    with pytest.raises(DraftMismatchError, match="no tokenizer"):
        UniversalDraft(text_model()).check(tiny.target())
