"""Is the acceptance real? What drafts that know nothing of pictures accept of the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import log

import torch
from torch import Tensor
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from vispec.decoding.tree import Tree, TreeShape
from vispec.drafts.growth import grow_dynamic
from vispec.targets import Target
from vispec.targets.base import Prompt


class Bigrams:
    """Next-token counts of some texts; unseen tokens are followed by what is common anywhere.

    Args:
        texts: token ids.
        vocabulary: number of tokens.
    """

    def __init__(self, texts: Sequence[Sequence[int]], vocabulary: int) -> None:
        pairs = Counter(pair for text in texts for pair in pairwise(text))
        counts = torch.zeros(vocabulary, vocabulary)
        for (token, following), count in pairs.items():
            counts[token, following] = count
        anywhere = counts.sum(0)
        counts = torch.where(counts.sum(1, keepdim=True) > 0, counts, anywhere)
        self.logits = (counts / counts.sum(1, keepdim=True).clamp(min=1)).log().clamp(min=-30)

    def propose(self, token: int, shape: TreeShape) -> Tree:
        """The dynamic tree behind a token, grown as a draft's would be."""
        root = torch.tensor([token])

        def expand(tokens: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
            return self.logits[tokens]

        return grow_dynamic(root, self.logits[root], expand, shape)


def accepted(tree: Tree, following: Sequence[int]) -> int:
    """How many of the tokens that follow the root lie on one path of a tree of one request."""
    tokens, parents = tree.token[0].tolist(), tree.parent[0].tolist()
    node = 0
    for depth, token in enumerate(following):
        children = [i for i, p in enumerate(parents) if p == node and tokens[i] == token]
        if not children:
            return depth
        node = children[0]
    return len(following)


def bigram_acceptance(
    bigrams: Bigrams, answers: Sequence[Sequence[int]], shape: TreeShape
) -> float:
    """Tokens a verification pass, over whole answers whose first token the prefill gives."""
    emitted = passes = 0
    for answer in answers:
        place = 0
        while place < len(answer) - 1:
            taken = accepted(bigrams.propose(answer[place], shape), answer[place + 1 :])
            place += min(taken + 1, len(answer) - 1 - place)
            passes += 1
        emitted += len(answer) - 1
    return emitted / max(1, passes)


def lookup_acceptance(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], tokens: int = 10
) -> float:
    """The same for Hugging Face's prompt lookup, over the prompt and the answer so far."""
    generator = PromptLookupCandidateGenerator(num_output_tokens=tokens, max_length=100_000)
    emitted = passes = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        place = 0
        while place < len(answer) - 1:
            text = torch.tensor([[*prompt.ids, *answer[: place + 1]]])
            found, _ = generator.get_candidates(text)
            proposed = found[0, text.shape[1] :].tolist()
            following = answer[place + 1 :]
            taken = next(
                (i for i, (a, b) in enumerate(zip(proposed, following, strict=False)) if a != b),
                min(len(proposed), len(following)),
            )
            place += min(taken + 1, len(answer) - 1 - place)
            passes += 1
        emitted += len(answer) - 1
    return emitted / max(1, passes)


@torch.inference_mode()
def bits_per_token(
    target: Target, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> float:
    """Mean entropy, bits, of the target's distribution at every token of given answers."""
    bits, count = 0.0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        cache = target.new_cache(1, len(prompt) + len(answer))
        first = target.prefill(prompt, cache, 0).logits
        n = len(answer)
        place = torch.arange(n)[None]
        chain = Tree(torch.tensor([answer]), place - 1, place, n - 1, torch.zeros(1, n))
        rest = target.verify(chain, cache).logits[0, :-1]
        law = torch.cat([first, rest]).double().log_softmax(-1)
        bits -= (law.exp() * law).sum().item() / log(2)
        count += n
    return bits / max(1, count)
