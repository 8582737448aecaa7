"""EAGLE-3 drafts for every family, losslessly, and reads the layers that it was trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import families
from families import FAMILIES, Family
from vispec.decoding.loop import Job, run
from vispec.decoding.sampling import Chooser, Sampling
from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts.eagle3 import Eagle3Config, Eagle3Draft
from vispec.errors import DraftMismatchError
from vispec.targets import Target, wrap

HIDDEN = families.TEXT_CONFIG["hidden_size"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"draft_vocab_size": 30},
    {"num_hidden_layers": 2, "qk_norm": True, "norm_output": True},
    {"norm_before_fc": True, "norm_before_residual": True, "draft_vocab_size": 50},
    {"fc_norm": True, "own_head": False, "head_dim": 16, "num_attention_heads": 2},
]


def draft(target: Target, seed: int = 0, **options: Any) -> Eagle3Draft:
    torch.manual_seed(seed)
    geometry = {
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": families.VOCAB,
        "draft_vocab_size": families.VOCAB,
        "aux_layers": (0, 1, target.text_config.num_hidden_layers),
    }
    config = Eagle3Config(**(geometry | options))
    token_map = None
    if config.draft_vocab_size != config.vocab_size:
        token_map = torch.randperm(config.vocab_size)[: config.draft_vocab_size].sort().values
    made = Eagle3Draft(config, token_map)
    return made.to(target.dtype).eval().requires_grad_(False)


def answers(
    target: Target, proposer: Any, inputs: list[Any], shape: Any, **sampling: Any
) -> tuple[list[list[int]], list[Job]]:
    jobs = []
    for asked in inputs:
        prompt = target.prompt(dict(asked))
        wishes = Sampling(**{"temperature": 0.0, "seed": len(prompt)} | sampling)
        config = wishes.over(target.model.generation_config)
        processors = target.processors(config, len(prompt), 12)
        chooser = Chooser(processors, sample=bool(config.do_sample), seed=wishes.seed)
        jobs.append(Job(prompt, chooser, 12, lambda token, _: token in target.eos_token_ids))
    for _ in run(target, proposer, jobs, shape=shape, slots=3, capacity=256):
        pass
    return [job.token_ids for job in jobs], jobs


def asked(family: Family, count: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    kinds = [[], ["image"], ["image", "image"]] if family.image else [[]]
    return [family.prompt(generator, kinds[i % len(kinds)]) for i in range(count)]


# One of every kind of decoder; `tests/targets/test_conformance.py` asks all of them.
KINDS = [f for f in FAMILIES if f.name in ("llama", "qwen3_vl", "gemma3", "qwen3_5", "lfm2_vl")]


@pytest.mark.parametrize("family", KINDS, ids=lambda family: family.name)
def test_every_family_says_the_same_with_it(family: Family) -> None:
    target = wrap(family.model(), None)
    inputs = asked(family)
    expected, _ = answers(target, None, inputs, TreeShape())
    for number, options in enumerate(OPTIONS):
        found, _ = answers(target, draft(target, number, **options), inputs, TreeShape(9, 3, 3))
        assert found == expected, options


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.inference_mode()
def test_sampled_trees_keep_to_what_the_draft_can_say(options: dict[str, Any]) -> None:
    """Stochastic acceptance needs each child's own probability, over the target's vocabulary."""
    family = next(f for f in FAMILIES if f.name == "llava")
    target = wrap(family.model(), None)
    proposer = draft(target, 1, **options)
    prompt = target.prompt(dict(asked(family)[1]))
    cache = target.new_cache(1, 256)
    prefill = target.prefill(prompt, cache, 0, proposer.feature_layers(target))
    session = proposer.session(target, 1, 256)
    session.begin(0, prompt, prefill, 7)

    class Noise:
        temperature = torch.ones(1)

        def gumbel(self, first: int, nodes: int, vocabulary: int) -> torch.Tensor:
            return torch.zeros(1, nodes, vocabulary)

    tree = session.propose(torch.tensor([7]), SampledShape((2, 2)), Noise())  # type: ignore[arg-type]
    assert tree.proposal is not None
    assert tree.proposal.shape[-1] == families.VOCAB
    torch.testing.assert_close(tree.proposal.sum(-1), torch.ones(tree.proposal.shape[:-1]).double())
    if proposer.token_map is not None:
        sayable = set(proposer.token_map.tolist())
        assert set(tree.token[0, 1:].tolist()) <= sayable
        assert set(tree.proposal.sum((0, 1)).nonzero()[:, 0].tolist()) <= sayable
    for node in range(1, tree.size):
        parent = int(tree.parent[0, node])
        p = tree.proposal[0, parent, tree.token[0, node]]
        step = tree.logprob[0, node] - tree.logprob[0, parent]
        assert step.item() == pytest.approx(p.log().item(), abs=1e-4)


@torch.inference_mode()
def test_a_draft_with_mrope_is_placed_as_the_target_places_its_tokens() -> None:
    """Step by step it guesses what it guesses of the whole text at the model's own positions."""
    family = next(f for f in FAMILIES if f.name == "qwen2_5_vl")
    target, options = wrap(family.model(), None), {"head_dim": 8, "rope_scaling": families.MROPE}
    proposer = draft(target, 4, **options)
    asked, said = family.prompt(torch.Generator().manual_seed(3), ["image", "image"]), [7, 9, 11]
    prompt, cache = target.prompt(dict(asked)), target.new_cache(1, 256)
    layers = proposer.feature_layers(target)
    prefill = target.prefill(prompt, cache, 0, layers)
    session = proposer.session(target, 1, 256)
    session.begin(0, prompt, prefill, said[0])
    chain = torch.arange(2)[None]
    tree = Tree(torch.tensor([said[:2]]), chain - 1, chain, 1, torch.zeros(1, 2))
    seen = target.verify(tree, cache, layers=layers)
    session.advance([[0, 1]], [said[1:]], seen.features)

    whole = asked | {"input_ids": torch.cat([asked["input_ids"], torch.tensor([said])], 1)}
    whole[family.marks] = torch.nn.functional.pad(asked[family.marks], (0, 3))
    names = ("input_ids", "image_grid_thw", "mm_token_type_ids")
    positions, _ = family.model().base_model.get_rope_index(**{n: whole[n] for n in names})
    words = target.embedding(torch.tensor(said))
    features = proposer.fuse(torch.cat([prefill.features, seen.features[0]]))
    following = torch.cat([prefill.embeddings[1:], words])
    nothing = torch.zeros(HIDDEN, dtype=target.dtype)
    rows = proposer.combine(following, features, nothing)
    expected = proposer(rows[None], positions[:, :, :-1])[0, -1]
    torch.testing.assert_close(session.hidden[0], expected)
    # Slots are not positions here: placed by them, it would have guessed something else.
    plain = proposer(rows[None], torch.arange(len(rows))[None])[0, -1]
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_without_layers_of_its_own_it_reads_the_papers() -> None:
    target = wrap(FAMILIES[0].model(), None)
    count = target.text_config.num_hidden_layers
    assert draft(target, aux_layers=None).feature_layers(target) == (2, count // 2, count - 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_hidden_size": 48}, ["features of size 48", str(HIDDEN)]),
        ({"vocab_size": 65}, ["vocabulary of 65", str(families.VOCAB)]),
        ({"aux_layers": (1, 2, 9)}, ["[9]", "0 to 2"]),
        (
            {"hidden_size": 64, "target_hidden_size": HIDDEN},
            ["hidden size 64 shares the token embedding of", str(HIDDEN)],
        ),
        (
            {"hidden_size": 64, "target_hidden_size": HIDDEN, "own_head": False},
            ["shares the token embedding and LM head of", str(HIDDEN)],
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_listed(options: dict[str, Any], words: list[str]) -> None:
    target = wrap(FAMILIES[0].model(), None)
    with pytest.raises(DraftMismatchError) as error:
        draft(target, **options).check(target)
    for word in words:
        assert word in str(error.value)
