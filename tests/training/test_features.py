"""Kept features are the model's own hidden states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

import talking
import tiny
from vispec.errors import VispecError
from vispec.targets import Target
from vispec.training import features
from vispec.training.distill import Answer, Question
from vispec.training.features import MISSED, Online, Sample, Store, collect, look


@pytest.fixture(scope="module")
def target() -> Target:
    return talking.target()


def asked(count: int) -> tuple[list[Question], dict[str, Answer]]:
    questions = []
    for i in range(count):
        images = [lambda i=i: talking.picture(i)] * (i % 3)
        questions.append(Question(str(i), f"the {talking.LETTERS[i]}", images))
    answers = {str(i): Answer(str(i), list(range(5, 8 + i)), "") for i in range(count)}
    return questions, answers


def same(one: Sample, other: Sample) -> None:
    assert one.key == other.key
    for name, value in tensors(one).items():
        assert torch.equal(value, getattr(other, name)), name


def tensors(sample: Sample) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(sample).items() if name != "key"}


@pytest.mark.parametrize("layers", [(), (0, 2, 1)])
def test_features_and_embeddings_are_those_of_the_models_own_forward(
    target: Target, layers: tuple[int, ...]
) -> None:
    questions, answers = asked(5)
    for question in questions:
        answer = answers[question.key]
        sample = look(target, question, answer, layers)
        images = question.shown()
        text = "<s>user:" + " <image>" * len(images) + f" {question.prompt}\nassistant:"
        inputs = dict(talking.processor()(images=images or None, text=text, return_tensors="pt"))
        t = inputs["input_ids"].shape[1]
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer.token_ids])], 1)
        pixels = inputs.get("pixel_values")
        given = {"input_ids": ids, "pixel_values": None if pixels is None else pixels.double()}
        found: list[torch.Tensor] = []
        hook = target.decoder.layers[-1].register_forward_hook(
            lambda module, inputs, out, found=found: found.append(out)
        )
        out = target.model(**given, output_hidden_states=True)
        hook.remove()
        # Hugging Face's last entry is behind the norm.
        states = [*out.hidden_states[:-1], found[0]]
        expected = torch.cat([states[i] for i in layers], -1) if layers else out.hidden_states[-1]
        assert sample.answer_start == t
        assert len(sample.features) == t + len(answer.token_ids)
        torch.testing.assert_close(sample.features, expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(sample.hidden, out.hidden_states[-1][0], rtol=0, atol=1e-12)
        assert torch.equal(sample.embeddings, out.hidden_states[0][0])
        assert torch.equal(sample.image_index >= 0, ids[0] == tiny.IMAGE_TOKEN)
        assert (sample.image_index[t:] == -1).all()
        assert sample.ids.tolist() == ids[0].tolist()
        assert sample.tokens.tolist() == [*answer.token_ids[1:], -1]
        assert sample.positions.tolist() == list(range(ids.shape[1]))


def test_the_end_of_an_answer_is_said_but_not_run(target: Target) -> None:
    """Nothing is drafted behind it; that it comes is to be learnt."""
    question = Question("a", "the")
    eos = next(iter(target.eos_token_ids))
    cut, ended = (look(target, question, Answer("a", [5, 6, *end], "")) for end in ([], [eos]))
    assert torch.equal(cut.features, ended.features)
    assert len(cut.tokens) == 2
    assert cut.tokens.tolist() == [6, -1]
    assert ended.tokens.tolist() == [6, eos]
    assert len(look(target, question, Answer("a", [eos], "")).features) > 0


@pytest.mark.parametrize("layers", [(), (0, 2)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_what_is_kept_is_what_is_worked_out_each_time(
    precision: features.Precision,
    layers: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "SHARD", 2)
    target = talking.target(torch.float32)
    questions, answers = asked(5)
    store = collect(target, questions, answers, tmp_path, layers=layers, precision=precision)
    online = Online(target, questions, answers, layers)
    alone = Online(target, questions, answers)
    for kept, fresh in zip(Store(tmp_path, target, layered=False), alone, strict=True):
        close = 0.0 if precision == "float32" else fresh.hidden.abs().max().item() / 100
        torch.testing.assert_close(kept.features.float(), fresh.features, rtol=0, atol=close)
    assert len(store) == len(online) == 5
    for kept, fresh in zip(store, online, strict=True):
        assert kept.key == fresh.key
        for name, value in tensors(fresh).items():
            found = getattr(kept, name)
            if precision == "float32" or not value.is_floating_point():
                assert torch.equal(found, value), name
            else:
                worst = value.abs().max() / (100 if precision == "bfloat16" else 200)
                assert (found - value).abs().max() <= worst, name
        text = fresh.image_index < 0
        assert torch.equal(kept.embeddings[text], fresh.embeddings[text])


def test_fewer_bytes_for_coarser_numbers(tmp_path: Path) -> None:
    target = talking.target(torch.float32)
    questions, answers = asked(9)
    sizes = [
        collect(target, questions, answers, tmp_path / kind, precision=kind).bytes_per_token
        for kind in ("float32", "bfloat16", "int8")
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    positions = sum(len(sample.features) for sample in Store(tmp_path / "int8", target))
    whole = sum(path.stat().st_size for path in (tmp_path / "int8").iterdir())
    assert sizes[2] == pytest.approx(whole / positions)


def test_shards_are_not_made_again_unless_they_are_damaged(
    target: Target,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(features, "SHARD", 2)
    questions, answers = asked(5)
    made = list(collect(target, questions, answers, tmp_path))
    assert len(list(tmp_path.iterdir())) == 3
    looked: list[str] = []

    def counting(*given: Any) -> Sample:
        looked.append(given[1].key)
        return look(*given)

    monkeypatch.setattr(features, "look", counting)
    for one, other in zip(made, collect(target, questions, answers, tmp_path), strict=True):
        same(one, other)
    assert looked == []
    # A kill in the middle of a shard leaves at most a file of another name; a bad disk, part of it.
    shard = tmp_path / "features-000002.safetensors"
    for damage in (
        lambda: shard.rename(shard.with_suffix(".tmp")),
        lambda: shard.write_bytes(shard.read_bytes()[:-100]),
        lambda: shard.write_bytes(b"no features"),
    ):
        damage()
        left = Store(tmp_path, target)
        assert len(left) == 3
        assert len(left.damaged) == shard.exists()
        if left.damaged:
            assert str(shard) in left.damaged[0]
            assert str(shard) in capsys.readouterr().err
        looked.clear()
        for one, other in zip(made, collect(target, questions, answers, tmp_path), strict=True):
            same(one, other)
        assert looked == ["2", "3"]


def test_a_sample_of_other_bytes_is_left_out_and_named(
    target: Target,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its file is opened without a word, and its numbers would be learnt from."""
    monkeypatch.setattr(features, "SHARD", 3)
    made = list(collect(target, *asked(6), tmp_path))
    shard = tmp_path / "features-000003.safetensors"
    whole = shard.read_bytes()
    numbers = safetensors.torch.load(whole)["1.features"].view(torch.uint8)
    start = whole.index(numbers.numpy().tobytes())
    for damaged in (whole, whole[: start + 9] + b"\x55" + whole[start + 10 :]):
        shard.write_bytes(damaged)
        store = Store(tmp_path, target)
        found = list(store)
        if damaged is whole:
            assert [one.key for one in found] == ["0", "1", "2", "3", "4", "5"]
            assert store.damaged == []
    assert [one.key for one in found] == ["0", "1", "2", "3", "5", "5"]
    same(store[4], made[5])
    same(store[-2], made[5])
    assert store.damaged == [f"sample 1 of {shard}"]
    assert capsys.readouterr().err.count("left out damaged features: sample 1 of ") == 1
    with pytest.raises(IndexError):
        store[6]


def test_features_that_are_all_damaged_are_refused(target: Target, tmp_path: Path) -> None:
    collect(target, *asked(1), tmp_path)
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    with pytest.raises(VispecError, match="are damaged"):
        Store(tmp_path, target)[0]


def test_a_picture_that_is_damaged_since_is_left_out_and_named(
    target: Target,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "picture.png").write_bytes(b"no picture any more")
    questions, answers = asked(4)
    questions[2] = replace(questions[2], images=[str(tmp_path / "picture.png")])
    found = collect(target, questions, answers, tmp_path / "kept")
    assert [sample.key for sample in found] == ["0", "1", "3"]
    assert "left out 2" in capsys.readouterr().err
    # A shard that lacks it is whole.
    monkeypatch.setattr(features, "look", lambda *_: pytest.fail("looked again"))
    assert len(collect(target, questions, answers, tmp_path / "kept")) == 3


def test_the_next_sample_stands_for_one_whose_picture_is_gone(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where features are worked out anew, too; training goes on."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"no picture any more")
    questions, answers = asked(4)
    whole = list(Online(target, questions, answers))
    questions[3] = replace(questions[3], images=[str(picture)])
    found = Online(target, questions, answers)
    for _ in range(2):
        assert [sample.key for sample in found] == ["0", "1", "2", "0"]
        same(found[3], whole[0])
    assert capsys.readouterr().err.count("left out 3: ") == 1
    many, said = asked(MISSED + 1)
    gone = Online(target, [replace(one, images=[str(picture)]) for one in many], said)
    with pytest.raises(VispecError, match=f"{MISSED + 1} pictures cannot be read any more"):
        gone[0]
    gone = Online(target, gone.questions[:2], said)
    with pytest.raises(VispecError, match="no picture can be read any more"):
        gone[0]


def test_a_disk_without_room_is_told_early(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARD", 2)
    questions, answers = asked(7)
    usage = SimpleNamespace(free=10_000)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(VispecError, match=r"GB more, and 0 are free .*(int8|online)"):
        collect(target, questions, answers, tmp_path)
    # What was kept is kept, and with room it goes on.
    assert len(list(tmp_path.iterdir())) == 1
    usage.free = 10**9
    assert len(collect(target, questions, answers, tmp_path)) == 7


def test_workers_make_what_one_does(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARD", 2)
    questions, answers = asked(7)
    one, several = tmp_path / "one", tmp_path / "several"
    whole = collect(target, questions, answers, one)
    counts = [
        len(collect(target, questions, answers, several, worker=worker, workers=3))
        for worker in (1, 0, 2)
    ]
    assert counts == [2, 5, 7]
    for found, other in zip(Store(several, target), whole, strict=True):
        same(found, other)


def test_an_answer_that_says_the_image_token_is_text(target: Target) -> None:
    """A model may say anything; what it said has no pixels."""
    question = Question("a", "the", [lambda: talking.picture(0)])
    said = [5, tiny.IMAGE_TOKEN, 6]
    sample = look(target, question, Answer("a", said, ""))
    assert torch.equal(sample.embeddings[-3:], target.embedding(torch.tensor(said)))
    assert sample.image_index[-3:].tolist() == [-1, -1, -1]
    assert int((sample.image_index == 0).sum()) == tiny.VISUAL
