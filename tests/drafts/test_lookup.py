"""What followed the same words before is proposed; what is said stays the target's."""

from __future__ import annotations

import random

import pytest
import torch

import talking
import tiny
from trees import depths
from vispec.decoding.engine import Engine, Request
from vispec.decoding.sampling import Sampling
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.lookup import LookupDraft, LookupSession, Passage
from vispec.targets.base import Prefill, Prompt


def session(draft: LookupDraft, texts: list[list[int]]) -> LookupSession:
    """Each text's last token is the root; negative ones are images."""
    made = draft.session(tiny.target(), len(texts), 100)
    for slot, text in enumerate(texts):
        index = torch.tensor([0 if token < 0 else -1 for token in text[:-1]])
        prefill = Prefill(torch.empty(0), torch.empty(0), torch.empty(0), index, 0, 0)
        made.begin(slot, Prompt([abs(token) for token in text[:-1]], {}), prefill, text[-1])
    return made


def paths(draft: LookupDraft, text: list[int], shape: TreeShape) -> set[tuple[int, ...]]:
    """The proposed continuations, each up to every node."""
    tree = session(draft, [text]).propose(torch.tensor(text[-1:]), shape, None)
    assert tree.token.shape == (1, shape.size)
    assert torch.equal(tree.depth, depths(tree.parent))
    token, parent = tree.token[0].tolist(), tree.parent[0].tolist()
    found = set()
    for node in range(1, len(token)):
        if token[node] < 0:
            continue
        way, at = [], node
        while at:
            way.append(token[at])
            at = parent[at]
        found.add(tuple(reversed(way)))
    return found


def by_hand(text: list[int], longest: int, least: int, depth: int) -> set[tuple[int, ...]]:
    """All that ever followed as many of the last tokens as agree anywhere."""
    found = set()
    for length in range(least, longest + 1):
        suffix = text[-length:]
        if len(suffix) < length or min(suffix) < 0:
            continue
        for end in range(length, len(text)):
            if text[end - length : end] != suffix:
                continue
            behind = text[end : end + depth]
            for i, token in enumerate(behind):
                if token < 0:
                    behind = behind[:i]
                    break
            found |= {tuple(behind[: i + 1]) for i in range(len(behind))}
    return found


@pytest.mark.parametrize(("longest", "least"), [(1, 1), (3, 1), (3, 2), (4, 4)])
def test_all_that_followed_the_same_words_is_proposed(longest: int, least: int) -> None:
    draft = LookupDraft(longest, least)
    seen = 0
    for seed in range(200):
        draw = random.Random(seed)
        text = [
            draw.choice((3, 4, 5, 6, -9) if longest < 4 else (3, 3, 4, -9))
            for _ in range(draw.randint(1, 25))
        ] + [3]
        expected = by_hand(text, longest, least, 4)
        assert paths(draft, text, TreeShape(120, 4, 8)) == expected
        seen += len(expected)
    assert seen > 10


def test_longer_and_later_matches_come_first_where_there_is_no_room_for_all() -> None:
    draft = LookupDraft(3)
    #       three agree      one agrees   one agrees, later
    text = [7, 8, 9, 1, 2,   3, 9, 4, 5,  6, 9, 6, 6,  7, 8, 9]  # fmt: skip
    assert paths(draft, text, TreeShape(3, 2, 1)) == {(1,), (1, 2)}
    assert paths(draft, text, TreeShape(5, 2, 1)) == {(1,), (1, 2), (6,), (6, 6)}


def test_what_was_accepted_is_text_to_look_up() -> None:
    text, draw = [5, 6, 7], random.Random(0)
    made = session(LookupDraft(2), [text, text])
    for _ in range(10):
        said = [[draw.randrange(3, 8) for _ in range(draw.randint(1, 4))] for _ in range(2)]
        nodes = [list(range(len(row))) for row in said]
        made.advance(nodes, said, torch.empty(0))
        fresh = [Passage(passage.ids, 2) for passage in made.texts]
        for passage, again in zip(made.texts, fresh, strict=True):
            assert list(passage.matches()) == list(again.matches())
    made.move(1, 0)
    assert made.texts[0].ids[3:] == made.texts[1].ids[3:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("accept", ["keyed", "stochastic"])
def test_the_text_is_the_targets_own(temperature: float, accept: str) -> None:
    target = talking.target()
    engine = Engine(
        target, LookupDraft(2), tree=TreeShape(9, 3, 3), sampled=SampledShape((2, 1)), max_batch=2
    )
    sampling = Sampling(max_new_tokens=40, temperature=temperature, seed=4)
    asked = [Request("the cat", [talking.picture(i)] * (i % 3), sampling) for i in range(5)]
    plain = [engine.generate(one, speculate=False).token_ids for one in asked]
    results = engine.generate(asked, accept=accept)  # type: ignore[call-overload]
    assert [result.token_ids for result in results] == plain
    passes = sum(result.stats.target_passes for result in results)
    # A random model that samples repeats itself rarely.
    assert passes < (1.0 if temperature else 0.95) * sum(len(text) - 1 for text in plain)


@pytest.mark.parametrize(("longest", "least"), [(3, 4), (3, 0)])
def test_impossible_lengths_are_named(longest: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"least is {least}"):
        LookupDraft(longest, least)
