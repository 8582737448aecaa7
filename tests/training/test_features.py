"""Kept features are the model's own hidden states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import talking
import tiny
from vispec.targets import Target
from vispec.training import features
from vispec.training.distill import Answer, Question
from vispec.training.features import collect, look


@pytest.fixture(scope="module")
def target() -> Target:
    return talking.target()


def asked(count: int) -> tuple[list[Question], dict[str, Answer]]:
    questions = []
    for i in range(count):
        image = (lambda i=i: talking.picture(i)) if i % 2 else None
        questions.append(Question(str(i), f"the {talking.LETTERS[i]}", image))
    answers = {str(i): Answer(str(i), list(range(5, 8 + i)), "") for i in range(count)}
    return questions, answers


def test_features_and_embeddings_are_those_of_the_models_own_forward(target: Target) -> None:
    questions, answers = asked(4)
    for question in questions:
        answer = answers[question.key]
        sample = look(target, question, answer)
        images = [question.image()] if question.image else None
        text = "<s>user:" + " <image>" * bool(images) + f" {question.prompt}\nassistant:"
        inputs = dict(talking.processor()(images=images, text=text, return_tensors="pt"))
        t = inputs["input_ids"].shape[1]
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer.token_ids])], 1)
        pixels = inputs.get("pixel_values")
        out = target.model(
            input_ids=ids,
            pixel_values=None if pixels is None else pixels.double(),
            output_hidden_states=True,
        )
        assert sample.answer_start == t
        assert len(sample.features) == t + len(answer.token_ids)
        torch.testing.assert_close(sample.features, out.hidden_states[-1][0], rtol=0, atol=1e-12)
        assert torch.equal(sample.embeddings, out.hidden_states[0][0])
        assert torch.equal(sample.image_index >= 0, ids[0] == tiny.IMAGE_TOKEN)
        assert (sample.image_index[t:] == -1).all()


def test_the_end_of_an_answer_is_left_out(target: Target) -> None:
    """Nothing is drafted behind it, so nothing is to be learnt there."""
    question = Question("a", "the", None)
    eos = next(iter(target.eos_token_ids))
    samples = [look(target, question, Answer("a", [5, 6, *end], "")) for end in ([], [eos])]
    assert torch.equal(samples[0].features, samples[1].features)
    assert len(samples[0].features) == samples[0].answer_start + 2
    assert len(look(target, question, Answer("a", [eos], "")).features) > 0


def test_samples_come_back_from_their_shards_and_are_not_made_again(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARD", 2)
    questions, answers = asked(5)
    made = collect(target, questions, answers, tmp_path)
    assert len(made) == 5
    assert len(list(tmp_path.iterdir())) == 3
    for sample, question in zip(made, questions, strict=True):
        expected = look(target, question, answers[question.key])
        assert torch.equal(sample.features, expected.features.to(torch.bfloat16))
        assert torch.equal(sample.embeddings, expected.embeddings.to(torch.bfloat16))
        assert torch.equal(sample.image_index, expected.image_index)
        assert sample.answer_start == expected.answer_start

    looked: list[str] = []

    def counting(target: Target, question: Question, answer: Answer) -> features.Sample:
        looked.append(question.key)
        return look(target, question, answer)

    monkeypatch.setattr(features, "look", counting)
    again = collect(target, questions, answers, tmp_path)
    assert looked == []
    assert all(torch.equal(a.features, b.features) for a, b in zip(made, again, strict=True))
    # A kill in the middle of a shard leaves at most a file of another name.
    shard = tmp_path / "features-000002.safetensors"
    shard.rename(shard.with_suffix(".tmp"))
    again = collect(target, questions, answers, tmp_path)
    assert looked == ["2", "3"]
    assert all(torch.equal(a.features, b.features) for a, b in zip(made, again, strict=True))


def test_an_answer_that_says_the_image_token_is_text(target: Target) -> None:
    """A model may say anything; what it said has no pixels."""
    question = Question("a", "the", lambda: talking.picture(0))
    said = [5, tiny.IMAGE_TOKEN, 6]
    sample = look(target, question, Answer("a", said, ""))
    assert torch.equal(sample.embeddings[-3:], target.embedding(torch.tensor(said)))
    assert sample.image_index[-3:].tolist() == [-1, -1, -1]
    assert int((sample.image_index == 0).sum()) == tiny.VISUAL
