"""Questions in, text out: what the engine adds around the loop."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import talking
import tiny
from vispec import Engine, Request, SampledShape, Sampling, TreeShape
from vispec.errors import ConversationError, ImageError, PromptTooLongError, SamplingError
from vispec.targets import Target

TREE = TreeShape(12, 5, 4)
TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]},
    {"role": "assistant", "content": "a cat."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "and"},
            {"type": "image"},
            {"type": "image"},
            {"type": "text", "text": "here ?"},
        ],
    },
]


@pytest.fixture(scope="module")
def target() -> Target:
    """Ends its answers now and then: two of its frequent tokens are ends of sequence, too."""
    made = talking.target()
    made.model.generation_config.eos_token_id = [tiny.EOS, 16, 23]
    return made


@pytest.fixture(scope="module")
def engine(target: Target) -> Engine:
    return Engine(target, tiny.draft(), tree=TREE, sampled=SampledShape((2, 1, 1)), max_batch=3)


def inputs_by_hand(text: str, images: Sequence[Image.Image] = ()) -> dict[str, Tensor]:
    """What the processor makes of a whole conversation written out."""
    made = talking.processor()(images=list(images) or None, text="<s>" + text, return_tensors="pt")
    made = dict(made)
    if images:
        made["pixel_values"] = made["pixel_values"].double()
    return made


def generated(target: Target, inputs: dict[str, Tensor], count: int, **options: Any) -> list[int]:
    out = target.model.generate(**inputs, max_new_tokens=count, do_sample=False, **options)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def oracle(target: Target, *inputs: dict[str, Tensor], hit: float = 0.9, seed: int = 0) -> Any:
    """A draft that mostly knows what the target will say, beyond any end of sequence."""
    truth = {tiny.prompt_key(i): generated(target, i, 50, eos_token_id=-1) for i in inputs}
    return tiny.Oracle(truth, seed=seed, hit=hit)


# --- Prompts --------------------------------------------------------------------------------------


def test_a_question_about_pictures_is_answered_as_generate_answers_it(engine: Engine) -> None:
    for count in range(4):
        images = [talking.picture(i) for i in range(count)]
        text = "user:" + " <image>" * count + " the cat\nassistant:"
        result = engine.generate("the cat", images, max_new_tokens=15)
        assert result.token_ids == generated(engine.target, inputs_by_hand(text, images), 15)


def test_a_conversation_of_several_turns_shows_its_pictures_in_order(engine: Engine) -> None:
    images = [talking.picture(i) for i in range(3)]
    text = (
        "user: <image> what is it ?\nassistant: a cat.</s>"
        "user: and <image> <image> here ?\nassistant:"
    )
    result = engine.generate(TURNS, images, max_new_tokens=15)
    expected = generated(engine.target, inputs_by_hand(text, images), 15)
    assert result.token_ids == expected
    assert engine.generate(TURNS, images[::-1], max_new_tokens=15).token_ids != expected


def test_one_picture_needs_no_list(engine: Engine, tmp_path: Path) -> None:
    picture = talking.picture(1)
    picture.save(tmp_path / "one.png")
    expected = engine.generate("what ?", [picture], max_new_tokens=5).token_ids
    for source in (picture, tmp_path / "one.png", str(tmp_path / "one.png")):
        assert engine.generate("what ?", source, max_new_tokens=5).token_ids == expected


@pytest.mark.parametrize(("places", "given"), [(3, 2), (3, 4), (3, 0)])
def test_pictures_that_do_not_match_the_conversation_are_counted(
    engine: Engine, places: int, given: int
) -> None:
    with pytest.raises(ConversationError, match=f"{places} image places, but {given} images"):
        engine.generate(TURNS, [talking.picture(i) for i in range(given)])


def test_a_prompt_as_long_as_the_context_is_refused_with_both_numbers(engine: Engine) -> None:
    context = engine.target.context_length
    empty = len(engine.target.encode(""))
    engine.generate("b" * (context - empty - 1), max_new_tokens=1)
    with pytest.raises(PromptTooLongError, match=rf"takes {context} tokens.*holds {context}"):
        engine.generate("b" * (context - empty))


def test_a_bad_request_is_refused_before_any_other_is_started(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a forward pass ran")

    monkeypatch.setattr(engine.target, "prefill", started)
    (tmp_path / "note.png").write_text("not a picture")
    bad = [
        Request("what ?", [tmp_path / "note.png"]),
        Request("what ?", [tmp_path / "none.png"]),
        Request("b" * 1000),
        Request(TURNS, [talking.picture(0)]),
    ]
    for request in bad:
        with pytest.raises((ConversationError, ImageError, PromptTooLongError)):
            engine.generate([Request("fine"), request])
        with pytest.raises((ConversationError, ImageError, PromptTooLongError)):
            engine.stream([Request("fine"), request])


def test_an_unknown_option_is_named_together_with_the_known_ones(engine: Engine) -> None:
    with pytest.raises(TypeError, match=r"unknown option tempreature.*max_new_tokens.*temperature"):
        engine.generate("what ?", tempreature=0.5)
    with pytest.raises(TypeError, match="belong in the requests"):
        engine.generate([Request("what ?")], temperature=0.5)
    with pytest.raises(TypeError, match="belong in the requests"):
        engine.generate([Request("what ?")], [talking.picture(0)])
    with pytest.raises(SamplingError, match="accept is 'greedy'; it must be 'keyed'"):
        engine.generate("what ?", accept="greedy")  # type: ignore[call-overload]
    with pytest.raises(SamplingError, match="temperature is -1"):
        engine.generate("what ?", temperature=-1)


@pytest.mark.parametrize("prompt", [3, None, {"role": "user"}, [Request("a"), "b"], ["a"]])
def test_a_prompt_of_another_kind_is_refused(engine: Engine, prompt: Any) -> None:
    with pytest.raises(TypeError):
        engine.generate(prompt)


# --- Batches --------------------------------------------------------------------------------------


def mixed_requests(count: int) -> list[Request]:
    """With and without pictures, greedy and sampled, of different lengths."""
    draw = random.Random(7)
    made = []
    for index in range(count):
        sampling = [
            Sampling(max_new_tokens=draw.randint(1, 25)),
            Sampling(max_new_tokens=draw.randint(1, 25), temperature=1.0, seed=index),
            Sampling(max_new_tokens=20, temperature=0.7, top_k=9, repetition_penalty=1.4),
            Sampling(max_new_tokens=20, temperature=1.3, top_p=0.8, seed=index, stop=("e", "th")),
        ][draw.randrange(4)]
        images = [talking.picture(draw.randrange(9)) for _ in range(draw.randrange(3))]
        text = "".join(draw.choice(talking.LETTERS + " ") for _ in range(draw.randint(1, 30)))
        made.append(Request(text, images, sampling))
    made.append(Request(TURNS, [talking.picture(i) for i in range(3)], sampling))
    return made


@pytest.mark.parametrize("accept", ["keyed", "stochastic"])
@pytest.mark.parametrize("speculate", [True, False])
def test_a_batch_of_mixed_requests_is_answered_in_order_as_one_by_one(
    target: Target, accept: Any, speculate: bool
) -> None:
    requests = mixed_requests(14)
    results = []
    for max_batch in (1, 2, 5, 64):
        engine = Engine(
            target, tiny.draft(), tree=TREE, sampled=SampledShape((2, 2)), max_batch=max_batch
        )
        results.append(engine.generate(requests, accept=accept, speculate=speculate))
    alone = [
        engine.generate(
            r.prompt,  # type: ignore[arg-type]
            r.images,
            accept=accept,
            speculate=speculate,
            **vars(r.sampling),
        )
        for r in requests
    ]
    for batch in [*results, alone]:
        assert [r.token_ids for r in batch] == [r.token_ids for r in alone]
        assert [r.text for r in batch] == [r.text for r in alone]
        assert [r.finish_reason for r in batch] == [r.finish_reason for r in alone]
    assert {r.finish_reason for r in alone} == {"stop", "length"}


def test_no_requests_have_no_answers(engine: Engine) -> None:
    assert engine.generate([]) == []


def test_keyed_answers_are_the_plain_loops_and_stochastic_ones_their_seeds(engine: Engine) -> None:
    def ask(seed: int, **options: Any) -> list[int]:
        found = engine.generate("the cat", temperature=1.0, seed=seed, max_new_tokens=20, **options)
        return found.token_ids

    seeds = range(8)
    plain = [ask(seed, speculate=False) for seed in seeds]
    assert [ask(seed) for seed in seeds] == plain
    stochastic = [ask(seed, accept="stochastic") for seed in seeds]
    assert [ask(seed, accept="stochastic") for seed in seeds] == stochastic
    assert stochastic != plain
    assert len({tuple(ids) for ids in stochastic}) == len(seeds)
    # Without a draft there is nothing to accept, and both rules are the plain loop.
    assert [ask(seed, accept="stochastic", speculate=False) for seed in seeds] == plain


def test_greedy_requests_are_the_same_under_both_rules(engine: Engine) -> None:
    for index in range(4):
        options: dict[str, Any] = {"max_new_tokens": 20, "images": [talking.picture(index)]}
        keyed = engine.generate("what ?", **options)
        stochastic = engine.generate("what ?", accept="stochastic", **options)
        assert keyed.token_ids == stochastic.token_ids


class Only(LogitsProcessor):
    """Lets the model say a few tokens only."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_copy(
            1, torch.tensor(self.tokens), scores[:, self.tokens]
        )


def test_logits_processors_serve_the_requests_they_came_with(engine: Engine) -> None:
    few = LogitsProcessorList([Only([5, 6])])
    sampling = Sampling(max_new_tokens=12)
    free, bound = engine.generate(
        [Request("a", sampling=sampling), Request("a", sampling=sampling, logits_processor=few)]
    )
    assert set(bound.token_ids) <= {5, 6}
    assert not set(free.token_ids) <= {5, 6}
    assert free.token_ids == engine.generate("a", max_new_tokens=12).token_ids
    one = engine.generate("a", max_new_tokens=12, logits_processor=few)
    assert one.token_ids == bound.token_ids


def test_the_checkpoints_sampling_defaults_and_limits_are_honoured() -> None:
    target = talking.target()
    config = target.model.generation_config
    config.update(do_sample=True, temperature=0.6, top_k=7, max_new_tokens=11, eos_token_id=None)
    engine = Engine(target, tiny.draft(), tree=TREE)
    silent = engine.generate("the cat", seed=3)
    assert len(silent.token_ids) == 11
    spelled = engine.generate("the cat", seed=3, temperature=0.6, top_k=7, max_new_tokens=11)
    assert silent.token_ids == spelled.token_ids
    assert silent.token_ids != engine.generate("the cat", temperature=0).token_ids


# --- Ends -----------------------------------------------------------------------------------------


def test_an_end_of_sequence_inside_a_tree_ends_the_answer_there(target: Target) -> None:
    ended = 0
    for index in range(20):
        text = f"user: {talking.LETTERS[index]} the\nassistant:"
        inputs = inputs_by_hand(text)
        expected = generated(target, inputs, 40)
        engine = Engine(target, oracle(target, inputs, hit=1.0, seed=index), tree=TREE)
        result = engine.generate(f"{talking.LETTERS[index]} the", max_new_tokens=40)
        assert result.token_ids == expected
        if expected[-1] in target.eos_token_ids:
            assert result.finish_reason == "stop"
            ended += 1
            longer = engine.generate(
                f"{talking.LETTERS[index]} the", max_new_tokens=40, ignore_eos=True
            )
            assert longer.token_ids[: len(expected)] == expected
            assert len(longer.token_ids) == 40
            assert longer.finish_reason == "length"
    assert ended > 5


def test_every_limit_inside_a_tree_is_kept(target: Target) -> None:
    inputs = inputs_by_hand("user: the\nassistant:")
    engine = Engine(target, oracle(target, inputs, hit=1.0), tree=TREE)
    whole = engine.generate("the", max_new_tokens=30, ignore_eos=True).token_ids
    for limit in range(1, 31):
        result = engine.generate("the", max_new_tokens=limit, ignore_eos=True)
        assert result.token_ids == whole[:limit]
        assert result.finish_reason == "length"
        assert result.stats.new_tokens == limit


@pytest.mark.parametrize("speculate", [True, False])
def test_stop_strings_end_answers_where_they_end_generates(speculate: bool) -> None:
    """The stop strings are cut from what the target says, across tokens and inside them."""
    tokenizer, draw = talking.tokenizer(), random.Random(3)
    target = talking.target()
    # In `generate` a special token between two others parts their text.
    target.model.generation_config.suppress_tokens = [0, 1, tiny.IMAGE_TOKEN]
    met = 0
    for index in range(30):
        prompt = "".join(draw.choice(talking.LETTERS) for _ in range(5))
        inputs = inputs_by_hand(f"user: {prompt}\nassistant:")
        said = generated(target, inputs, 25)
        text: str = tokenizer.decode(said, skip_special_tokens=True)  # type: ignore[assignment]
        # `generate` looks for stop strings in the prompt's end as well, which holds a colon.
        places = [i for i in range(len(text) - 4) if not set(text[i : i + 4]) & {":", "\ufffd"}]
        stop = ["zzzz"]
        for place in draw.sample(places, min(len(places), draw.randint(1, 2))):
            stop.append(text[place : place + draw.randint(1, 4)])
        expected = generated(target, inputs, 25, stop_strings=stop, tokenizer=tokenizer)
        draft = oracle(target, inputs, seed=index) if index % 2 else tiny.draft()
        engine = Engine(target, draft, tree=TREE)
        result = engine.generate(prompt, max_new_tokens=25, stop=tuple(stop), speculate=speculate)
        assert result.token_ids == expected, (prompt, stop)
        whole: str = tokenizer.decode(expected, skip_special_tokens=True)  # type: ignore[assignment]
        found = [whole.index(s) for s in stop if s in whole]
        assert result.text == whole[: min(found, default=len(whole))]
        if found:
            met += 1
            assert result.finish_reason == "stop"
    assert met > 20


CONTEXT = 40


def rope(kind: str) -> dict[str, Any]:
    """Rotary embeddings that change, or do not, once a position lies beyond the context."""
    if kind == "default":
        return {}
    parameters = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0}
    return {"rope_parameters": parameters}


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic"])
@pytest.mark.parametrize("spare", [1, 2, 3, 5, 9])
def test_an_answer_is_right_up_to_the_contexts_last_position(kind: str, spare: int) -> None:
    """The trees of the last passes reach beyond it."""
    target = talking.target(max_position_embeddings=CONTEXT, **rope(kind))
    target.model.generation_config.eos_token_id = None
    empty = len(target.encode(""))
    prompt = "b" * (CONTEXT - empty - spare)
    inputs = inputs_by_hand(f"user: {prompt}\nassistant:")
    expected = generated(target, inputs, spare)
    for draft in (None, tiny.draft(), oracle(target, inputs, hit=1.0)):
        # The oracle asked the model for positions beyond its context, which may change it.
        fresh = talking.target(max_position_embeddings=CONTEXT, **rope(kind))
        fresh.model.generation_config.eos_token_id = None
        engine = Engine(fresh, draft, tree=TreeShape(12, 8, 4))
        for _ in range(2):
            result = engine.generate(prompt, max_new_tokens=100)
            assert result.token_ids == expected
            assert result.finish_reason == "context"
        exact = engine.generate(prompt, max_new_tokens=spare)
        assert exact.token_ids == expected
        assert exact.finish_reason == "length"


# --- Streams --------------------------------------------------------------------------------------


def test_pieces_of_a_stream_are_the_text_and_hold_every_token_once(engine: Engine) -> None:
    requests = mixed_requests(10)
    stream = engine.stream(requests)
    pieces = list(stream)
    assert [r.token_ids for r in stream.results] == [r.token_ids for r in engine.generate(requests)]
    for index, result in enumerate(stream.results):
        own = [piece for piece in pieces if piece.request == index]
        assert "".join(piece.text for piece in own) == result.text
        assert [token for piece in own for token in piece.token_ids] == result.token_ids


def test_without_stop_strings_the_text_is_the_decoded_answer(engine: Engine) -> None:
    for seed in range(10):
        result = engine.generate("a", temperature=1.5, seed=seed, max_new_tokens=30)
        decoded = talking.tokenizer().decode(result.token_ids, skip_special_tokens=True)
        assert result.text == decoded


def test_a_stream_tells_which_tokens_the_draft_proposed(target: Target) -> None:
    inputs = inputs_by_hand("user: the\nassistant:")
    engine = Engine(target, oracle(target, inputs, hit=1.0), tree=TREE)
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    stream = engine.stream("the", **options)
    pieces = list(stream)
    single = [piece for piece in pieces if len(piece.token_ids) == 1]
    several = [piece for piece in pieces if len(piece.token_ids) > 1]
    hidden = sum(len(piece.token_ids) - 1 for piece in several)
    told = sum(piece.drafted for piece in [*single, *several])
    assert told <= stream.result.stats.accepted_tokens <= told + hidden
    assert told > 10
    assert not pieces[0].drafted
    assert not any(p.drafted for p in engine.stream("the", speculate=False, **options))


def test_a_stream_has_no_result_before_its_end(engine: Engine) -> None:
    stream = engine.stream("the cat", max_new_tokens=8, ignore_eos=True)
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = stream.result
    next(stream)
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = stream.results
    rest = list(stream)
    assert rest
    assert len(stream.result.token_ids) == 8
    assert list(stream) == []
    assert len(stream.result.token_ids) == 8


def test_a_stream_closed_early_has_no_result_and_leaves_the_engine_as_it_was(
    engine: Engine,
) -> None:
    expected = engine.generate("the cat", max_new_tokens=20).token_ids
    hooks = [len(m._forward_pre_hooks) for m in engine.target.model.modules()]
    for count in range(4):
        stream = engine.stream("the cat", max_new_tokens=20)
        for _ in range(count):
            next(stream)
        stream.close()
        assert list(stream) == []
        with pytest.raises(RuntimeError):
            _ = stream.result
        stream.close()
    assert [len(m._forward_pre_hooks) for m in engine.target.model.modules()] == hooks
    assert not torch.is_inference_mode_enabled()
    assert engine.generate("the cat", max_new_tokens=20).token_ids == expected


def test_two_streams_can_be_read_in_turns(engine: Engine) -> None:
    expected = [engine.generate(p, max_new_tokens=15).token_ids for p in ("the cat", "a hat")]
    streams = [engine.stream(p, max_new_tokens=15) for p in ("the cat", "a hat")]
    running = list(streams)
    while running:
        running = [stream for stream in running if next(stream, None) is not None]
        assert not torch.is_inference_mode_enabled()
    assert [stream.result.token_ids for stream in streams] == expected


# --- Numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["keyed", "stochastic"])
def test_the_numbers_of_an_answer_fit_together(engine: Engine, accept: Any) -> None:
    requests = mixed_requests(14)
    for request, result in zip(requests, engine.generate(requests, accept=accept), strict=True):
        stats = result.stats
        assert stats.new_tokens == len(result.token_ids)
        images = [image.convert("RGB") for image in request.images]  # type: ignore[union-attr]
        assert stats.prompt_tokens == len(engine.target.encode(request.prompt, images))
        assert sum(stats.accepted_by_depth) == stats.accepted_tokens
        assert stats.accepted_by_depth == sorted(stats.accepted_by_depth, reverse=True)
        assert all(n <= stats.target_passes for n in stats.accepted_by_depth)
        # The first token is the prefill's; every pass adds its accepted tokens and a bonus, but
        # an end inside a tree leaves the last pass without one.
        undrafted = stats.new_tokens - 1 - stats.accepted_tokens
        assert stats.target_passes - 1 <= undrafted <= stats.target_passes or not undrafted
        if stats.target_passes:
            length = (stats.new_tokens - 1) / stats.target_passes
            assert stats.acceptance_length == pytest.approx(length)
            assert stats.accepted_per_pass == stats.accepted_tokens / stats.target_passes
        times = [v for k, v in stats.as_dict().items() if k.endswith("_s") and "per" not in k]
        assert all(value >= 0 for value in times)
        assert stats.total_s == pytest.approx(sum(times) / 2)  # the parts, and their sum
        assert stats.vision_s > 0 or not request.images


def test_a_plain_answer_takes_a_pass_for_every_token_but_the_first(engine: Engine) -> None:
    stats = engine.generate("a", max_new_tokens=9, ignore_eos=True, speculate=False).stats
    assert (stats.new_tokens, stats.target_passes, stats.accepted_tokens) == (9, 8, 0)
    assert stats.acceptance_length == 1
    assert sum(stats.accepted_by_depth) == 0


def test_a_perfect_draft_accepts_every_depth_in_every_pass(target: Target) -> None:
    inputs = inputs_by_hand("user: the\nassistant:")
    draft = oracle(target, inputs, hit=1.0)
    engine = Engine(target, draft, tree=TreeShape.chain(4))

    def straight(roots: Tensor, shape: TreeShape, noise: object) -> Any:
        session = sessions[0]
        chain = [int(roots[0]), *session.rest[0][: shape.depth]]
        tree = tiny.Tree.root(roots)
        tree.token = torch.tensor([chain])
        tree.parent = torch.arange(-1, len(chain) - 1)[None]
        tree.depth = torch.arange(len(chain))[None]
        tree.max_depth = shape.depth
        return tree

    sessions: list[Any] = []
    make = draft.session

    def session(*given: Any) -> Any:
        sessions[:] = [make(*given)]
        sessions[0].propose = straight
        return sessions[0]

    draft.session = session
    stats = engine.generate("the", max_new_tokens=21, ignore_eos=True).stats
    assert stats.target_passes == 4
    assert stats.acceptance_length == 5
    assert stats.accepted_per_pass == 4
    assert stats.accepted_by_depth == [4, 4, 4, 4]


def test_one_request_is_answered_alone(engine: Engine) -> None:
    request = Request("the cat", [talking.picture(0)], Sampling(max_new_tokens=5))
    alone, (listed,) = engine.generate(request), engine.generate([request])
    assert alone.token_ids == listed.token_ids
    with pytest.raises(TypeError, match="belong in the requests"):
        engine.generate(request, [talking.picture(0)])  # type: ignore[call-overload]


@pytest.mark.parametrize("prompt", [None, 5, ["a", "b"], [[{"role": "user", "content": "a"}]]])
def test_what_is_no_prompt_is_named(engine: Engine, prompt: Any) -> None:
    with pytest.raises(TypeError, match="a list of Request"):
        engine.generate(prompt)


def test_no_images_may_be_none(engine: Engine) -> None:
    asked = {"max_new_tokens": 5, "temperature": 0}
    nothing = engine.generate("the cat", None, videos=None, **asked)  # type: ignore[call-overload]
    assert nothing.token_ids == engine.generate("the cat", **asked).token_ids
