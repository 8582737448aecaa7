"""What tables accept is what walking their proposals by hand accepts."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
import torch

import talking
from vispec.decoding.tree import Tree, TreeShape
from vispec.evaluation import baselines


def test_a_chain_of_bigrams_accepts_what_its_likeliest_followers_match() -> None:
    draw = random.Random(0)
    texts = [[draw.randrange(6) for _ in range(30)] for _ in range(8)]
    table = baselines.Bigrams(texts[:4], 6)
    counts = [Counter(b for t in texts[:4] for a, b in pairwise(t) if a == x) for x in range(6)]
    shape = TreeShape.chain(3)
    emitted = passes = 0
    for text in texts[4:]:
        place = 0
        while place < len(text) - 1:
            token, taken = text[place], 0
            while taken < 3 and place + taken + 1 < len(text):
                best = max(counts[token].values())
                likely = [x for x in range(6) if counts[token][x] == best]
                token = likely[0]
                if text[place + taken + 1] != token:
                    break
                taken += 1
            place += taken + 1
            passes += 1
        emitted += len(text) - 1
    found = baselines.bigram_acceptance(table, texts[4:], shape)
    assert found == pytest.approx(emitted / passes, rel=0.05)


def test_a_wide_tree_accepts_all_that_is_possible_after_a_token() -> None:
    texts = [[0, 1, 2, 0, 2, 1, 0, 1]]
    table = baselines.Bigrams(texts, 3)
    assert baselines.bigram_acceptance(table, texts, TreeShape(40, 3, 3)) == pytest.approx(7 / 2)


def test_unseen_tokens_are_followed_by_what_is_common() -> None:
    table = baselines.Bigrams([[1, 2, 2, 2]], 5)
    tree = table.propose(4, TreeShape(2, 1, 1))
    assert tree.token[0].tolist() == [4, 2]


def test_accepted_walks_the_matching_path() -> None:
    token = torch.tensor([[9, 1, 2, 3, 4]])
    parent = torch.tensor([[-1, 0, 0, 2, 3]])
    depth = torch.tensor([[0, 1, 1, 2, 3]])
    tree = Tree(token, parent, depth, 3, torch.zeros(1, 5))
    assert baselines.accepted(tree, [2, 3, 4, 7]) == 3
    assert baselines.accepted(tree, [1, 3]) == 1
    assert baselines.accepted(tree, [5]) == 0
    assert baselines.accepted(tree, []) == 0


def test_lookup_accepts_what_repeats_and_nothing_else() -> None:
    target = talking.target(torch.float32, max_position_embeddings=64)
    prompt = target.encode("the")
    again = [*range(5, 12), *range(5, 12)]
    assert baselines.lookup_acceptance([prompt], [again]) > 1.4
    assert baselines.lookup_acceptance([prompt], [list(range(20, 34))]) == pytest.approx(1, abs=0.1)


def test_bits_are_the_entropy_of_the_targets_own_distribution() -> None:
    target = talking.target(torch.float32, max_position_embeddings=64)
    prompt = target.encode("what ?", [talking.picture(0)])
    answer = [5, 6, 7, 8]
    ids = torch.tensor([[*prompt.ids, *answer[:-1]]])
    inputs = {k: v for k, v in prompt.inputs.items() if k not in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        logits = target.model(input_ids=ids, **inputs).logits[0, len(prompt) - 1 :].double()
    law = logits.softmax(-1)
    expected = -(law * law.log2()).sum(-1).mean().item()
    assert baselines.bits_per_token(target, [prompt], [answer]) == pytest.approx(expected, rel=1e-4)
