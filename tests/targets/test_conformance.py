"""What every family must do, asked of its real classes at small size.

The reference is the unmodified model's own `generate`, in float64; of sampled text, the plain loop.
"""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import vispec
from families import FAMILIES, IMAGE, VIDEO, Family
from vispec.adapters import QueryAdapter
from vispec.decoding.loop import Job, run
from vispec.decoding.sampling import Chooser, Sampling
from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts import Eagle3Config, Eagle3Draft, EagleConfig, EagleDraft
from vispec.loading_targets import load_target
from vispec.targets import FAMILIES as SUPPORTED
from vispec.targets import Target

NEW = 14
"""Tokens of an answer."""

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


SHOWN = {
    "nothing": [[]],
    "an image": [["image"]],
    "images": [["image", "image"], ["image", "image", "image"]],
    "videos": [["video"], ["image", "video"], ["video", "video"]],
}
"""What prompts show."""


def shown(family: Family, what: str | None = None) -> list[list[str]]:
    """What the prompts of a test show in turn, as far as the family takes it."""
    kinds = SHOWN[what] if what else [each for kinds in SHOWN.values() for each in kinds]
    takes = {"image": family.image, "video": family.video}
    apart = family.name.startswith("glm")  # its own code takes one kind a prompt
    return [
        each
        for each in kinds
        if all(takes[kind] is not None for kind in each) and not (apart and len(set(each)) > 1)
    ]


def prompts(
    family: Family, count: int, seed: int, what: str | None = None
) -> list[dict[str, Tensor]]:
    generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
    kinds = shown(family, what)
    if not kinds:
        pytest.skip(f"it takes no {what}")
    return [
        family.prompt(generator, kinds[i % len(kinds)], text=draw.randrange(3, 12))
        for i in range(count)
    ]


def jobs(target: Target, asked: list[dict[str, Tensor]], **sampling: Any) -> list[Job]:
    made = []
    for inputs in asked:
        wishes = Sampling(**{"temperature": 0.0, "seed": int(inputs["input_ids"].sum())} | sampling)
        prompt = target.prompt(dict(inputs))
        config = wishes.over(target.model.generation_config)
        chooser = Chooser(
            target.processors(config, len(prompt), NEW),
            sample=bool(config.do_sample),
            seed=wishes.seed,
        )
        made.append(Job(prompt, chooser, NEW, lambda token, _: token in target.eos_token_ids))
    return made


def answers(
    target: Target, draft: Any, work: list[Job], shape: TreeShape | SampledShape, slots: int
) -> list[list[int]]:
    for _ in run(target, draft, work, shape=shape, slots=slots, capacity=256):
        pass
    return [job.token_ids for job in work]


def generated(family: Family, inputs: dict[str, Tensor], **options: Any) -> list[int]:
    out = family.model().generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def oracle(asked: list[dict[str, Tensor]], truth: list[list[int]]) -> tiny.Oracle:
    known = {tiny.prompt_key(p): t + [0] * NEW for p, t in zip(asked, truth, strict=True)}
    return tiny.Oracle(known, seed=3)


def test_every_family_that_is_wrapped_is_asked() -> None:
    assert {family.config["model_type"] for family in FAMILIES} == set(SUPPORTED)


@pytest.mark.parametrize("what", SHOWN)
@every_family
def test_greedy_text_is_generates_own_in_every_tree_and_batch(family: Family, what: str) -> None:
    target = family.target()
    asked = prompts(family, 6, seed=1, what=what)
    expected = [generated(family, inputs) for inputs in asked]
    assert len({tuple(text) for text in expected}) > 2, "the model says the same of everything"
    draft = oracle(asked, expected)
    for slots, shape in (
        (1, TreeShape(12, 5, 3)),
        (3, TreeShape(7, 3, 2)),
        (4, TreeShape.chain(4)),
    ):
        work = jobs(target, asked)
        assert answers(target, draft, work, shape, slots) == expected
        accepted = sum(job.stats.accepted_tokens for job in work)
        assert accepted > sum(job.stats.target_passes for job in work) / 2
    assert answers(target, None, jobs(target, asked), TreeShape(), 3) == expected


@every_family
def test_seeded_sampling_is_the_plain_loops(family: Family) -> None:
    target = family.target()
    asked = prompts(family, 6, seed=2)
    options = {"temperature": 0.8, "top_k": 12}
    expected = answers(target, None, jobs(target, asked, **options), TreeShape(), 1)
    work = jobs(target, asked, **options)
    assert answers(target, oracle(asked, expected), work, TreeShape(9, 4, 3), 4) == expected


@every_family
def test_a_batch_inside_generate_is_generates_own(family: Family) -> None:
    asked = prompts(family, 5, seed=4)
    if family.name.startswith("glm"):  # its own code takes one kind a batch
        asked = [p for p in asked if "pixel_values_videos" not in p]
    batch = family.batch(asked)
    model = family.model()
    options = {"max_new_tokens": NEW, "do_sample": False}
    expected = model.generate(**batch, **options)
    draft = oracle([], [])
    draft.truth = _AnyPrompt()
    found = model.generate(**batch, **options, custom_generate=vispec.speculative(draft))
    assert torch.equal(found, expected)


DRAFTS = {
    "ViSpec": lambda target: _eagle(target, queries=3),
    "EAGLE": lambda target: _eagle(target, queries=None),
    "EAGLE-3": lambda target: _eagle3(target),
}


@pytest.mark.parametrize("kind", DRAFTS)
@every_family
def test_every_kind_of_draft_leaves_the_text_as_it_is(family: Family, kind: str) -> None:
    target = family.target()
    draft = DRAFTS[kind](target).to(target.dtype).eval().requires_grad_(False)
    draft.check(target)
    asked = prompts(family, 6, seed=9)
    expected = answers(target, None, jobs(target, asked), TreeShape(), 3)
    assert answers(target, draft, jobs(target, asked), TreeShape(9, 3, 3), 3) == expected
    # Trees of chance are rarely right, but they are there.
    proposed = jobs(target, asked)
    assert answers(target, draft, proposed, TreeShape(30, 2, 8), 2) == expected


def _eagle(target: Target, queries: int | None) -> EagleDraft:
    torch.manual_seed(1)
    size = target.hidden_size
    adapter = QueryAdapter(size, 4, queries) if queries else None
    return EagleDraft(EagleConfig(size, 48, 4, 2, target.vocab_size), adapter)


def _eagle3(target: Target) -> Eagle3Draft:
    torch.manual_seed(2)
    size, vocabulary = target.hidden_size, target.vocab_size
    layers = (0, 1, target.text_config.num_hidden_layers)
    config = Eagle3Config(size, 48, 4, 2, vocabulary, vocabulary // 2, aux_layers=layers)
    return Eagle3Draft(config, torch.arange(0, vocabulary, 2))


class _AnyPrompt(dict[str, list[int]]):
    """Nothing is known of any prompt: trees are random."""

    def __missing__(self, key: str) -> list[int]:
        return [0]


@every_family
@torch.inference_mode()
def test_images_and_videos_are_found_where_they_lie(family: Family) -> None:
    if family.image is None:
        pytest.skip("a text model")
    target = family.target()
    generator = torch.Generator().manual_seed(5)
    for kinds in shown(family) * 2:
        inputs, counts = family.prompt_and_counts(generator, kinds)
        prompt = target.prompt(inputs)
        prefill = target.prefill(prompt, target.new_cache(1, 256), 0)
        ids = torch.tensor(prompt.ids)
        placed = prefill.image_index >= 0
        assert torch.equal(placed, (ids == IMAGE) | (ids == VIDEO))
        assert prefill.image_index.max() == len(kinds) - 1
        assert (prefill.image_index[placed].diff() >= 0).all()
        assert _runs(prefill.image_index) == counts
        assert prefill.embeddings.shape == prefill.features.shape


def _runs(index: Tensor) -> list[int]:
    """How many places each image or video has."""
    return [int((index == i).sum()) for i in range(int(index.max()) + 1)]


def layer_inputs(family: Family, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What each decoder layer of the model's own forward is given, and what the last one gives."""
    layers, seen = family.model().get_decoder().layers, list[Tensor]()

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def leave(_: Any, args: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leave))
    family.model()(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [states[0] for states in seen]


@every_family
@torch.inference_mode()
def test_features_are_the_hidden_states_of_the_layers_asked_for(family: Family) -> None:
    target = family.target()
    asked = prompts(family, 3, seed=6)[-1]
    prompt = target.prompt(dict(asked))
    layers = tuple(range(target.text_config.num_hidden_layers + 1))
    hidden = target.model(**asked, output_hidden_states=True).hidden_states
    own = target.prefill(prompt, target.new_cache(1, 256), 0)
    torch.testing.assert_close(own.features, hidden[-1][0], rtol=0, atol=1e-9)
    layered = target.prefill(prompt, target.new_cache(1, 256), 0, layers=layers)
    given = torch.cat(layer_inputs(family, asked), -1)
    torch.testing.assert_close(layered.features, given, rtol=0, atol=1e-9)


@every_family
@torch.inference_mode()
def test_logits_are_the_models_own(family: Family) -> None:
    """Bounded where the model bounds them, and nowhere else."""
    target, said = family.target(), [7, 9, 11]
    asked = prompts(family, 3, seed=9)[-1]
    prompt, cache = target.prompt(dict(asked)), target.new_cache(1, 256)
    whole = asked | {"input_ids": torch.cat([asked["input_ids"], torch.tensor([said])], 1)}
    if family.marks:
        whole[family.marks] = torch.nn.functional.pad(asked[family.marks], (0, len(said)))
    expected = target.model(**whole, use_cache=False).logits[0, len(prompt) - 1 :]
    place = torch.arange(len(said))[None]
    chain = Tree(torch.tensor([said]), place - 1, place, len(said) - 1, torch.zeros(1, len(said)))
    found = [target.prefill(prompt, cache, 0).logits, target.verify(chain, cache).logits[0]]
    # Linear attention computes in float32, in one way step by step and in another at once.
    near = 1e-4 if target.chains_only else 1e-9
    torch.testing.assert_close(torch.cat(found), expected, rtol=near, atol=near)


@pytest.mark.parametrize("kind", DRAFTS)
@every_family
@torch.inference_mode()
def test_every_kind_of_draft_reads_what_the_model_saw(family: Family, kind: str) -> None:
    """Drafting step by step is drafting from the model's own pass over the whole text."""
    target, said = family.target(), [7, 9, 11]
    draft = DRAFTS[kind](target).to(target.dtype).eval()
    layers = draft.feature_layers(target)
    generator = torch.Generator().manual_seed(8)
    for shows in shown(family):
        asked, counts = family.prompt_and_counts(generator, shows)
        prompt, cache = target.prompt(dict(asked)), target.new_cache(1, 256)
        prefill = target.prefill(prompt, cache, 0, layers)
        session = draft.session(target, 1, 256)
        session.begin(0, prompt, prefill, said[0])
        # The second child of the root is kept; of layers with a memory, the only one.
        tokens, kept = ([7, 9], [0, 1]) if target.chains_only else ([7, 5, 9], [0, 2])
        node = torch.arange(len(tokens))[None]
        depth = (node > 0).long()
        tree = Tree(torch.tensor([tokens]), depth - 1, depth, 1, torch.zeros(1, len(tokens)))
        verified = target.verify(tree, cache, layers=layers)
        cache.keep(0, kept)
        session.advance([kept], [said[1:]], verified.features)

        t, ids = len(prompt), torch.tensor([prompt.ids + said])
        whole = asked | {"input_ids": ids}
        if family.marks:
            whole[family.marks] = torch.nn.functional.pad(asked[family.marks], (0, len(said)))
        states = layer_inputs(family, whole)
        last = target.model(**whole, output_hidden_states=True).hidden_states[-1][0]
        features = torch.cat([states[i] for i in layers], -1) if layers else last
        index = torch.full((t,), -1)
        places = (ids[0, :t] == IMAGE) | (ids[0, :t] == VIDEO)
        index[places] = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts).long())
        words = target.embedding(torch.tensor(said))
        rows = tiny.read(draft, states[0][:t], features[:t], index, words[0])
        behind = draft.combine(words[1:], draft.fuse(features[t : t + 2]), rows.globals)
        position = torch.cat([rows.position, torch.arange(t, t + 2)])
        expected = draft(torch.cat([rows.hidden, behind])[None], position[None])[0, -1]
        # Norms and routers of many models round to float32, which processors do differently for one
        # row and for many; layers with a memory even compute in it, in another order.
        near = 1e-4 if target.chains_only else 1e-6
        torch.testing.assert_close(session.hidden[0], expected, rtol=near, atol=near)


@every_family
def test_the_model_stays_as_it_was(family: Family) -> None:
    model = family.model()
    target = family.target()
    asked = prompts(family, 5, seed=7)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    before = [generated(family, inputs) for inputs in asked]
    between: list[list[int]] = []
    moves = run(
        target,
        oracle(asked, before),
        jobs(target, asked),
        shape=TreeShape(9, 3, 3),
        slots=2,
        capacity=256,
    )
    for step, _ in enumerate(moves):
        if step == 2:
            between = [generated(family, inputs) for inputs in asked]
    assert between == before
    assert [generated(family, inputs) for inputs in asked] == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert hooks == [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]


@every_family
def test_it_loads_from_its_folder(family: Family, tmp_path: Path) -> None:
    family.model().save_pretrained(tmp_path)
    target = load_target(tmp_path, processor=SimpleNamespace(tokenizer=None), **family.options)
    asked = prompts(family, 2, seed=8)
    expected = [generated(family, inputs) for inputs in asked]
    assert answers(target, None, jobs(target, asked), TreeShape(), 2) == expected
