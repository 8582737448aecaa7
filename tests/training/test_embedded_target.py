"""The recipe of the embedded target, at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vispec.errors import VispecError
from vispec.training import photos, scenes
from vispec.training.conversations import IGNORED, Batch
from vispec.training.image_cache import ImageCache
from vispec.training.pretrain import (
    TargetShape,
    answer_loss,
    build_target,
    calibrate_projector,
    compile_layers,
    grow,
    normalise,
)
from vispec.training.recipes import embedded_target
from vispec.training.tokenizer import build_processor, train_tokenizer

TOY = TargetShape(vocabulary=300, width=32, heads=2, mlp=48, layers=4, tower_layers=2, tower_mlp=48)
TOKENS = {"bos": 0, "eos": 1, "pad": 2, "image": 3}


def test_the_embedded_shape_is_small_narrow_and_deep() -> None:
    shape = TargetShape()
    with torch.device("meta"):
        model = build_target(shape, TOKENS, shape.layers)
    parameters = sum(p.numel() for p in model.parameters())
    assert shape.visual_tokens == 144
    assert parameters * 2 < 42e6


def test_growing_keeps_the_function() -> None:
    torch.manual_seed(0)
    model = build_target(TOY, TOKENS, layers=2).eval()
    grown = grow(model, 3).eval()
    assert grown.config.text_config.num_hidden_layers == 6
    ids = torch.tensor([[0, *[3] * 144, 20, 21, 22]])
    pixels = normalise(torch.randint(0, 255, (1, 192, 192, 3), dtype=torch.uint8))
    with torch.no_grad():
        before = model(input_ids=ids, pixel_values=pixels).logits
        after = grown(input_ids=ids, pixel_values=pixels).logits
    assert torch.equal(before, after)


def test_grown_layers_learn_and_differ_from_each_other() -> None:
    torch.manual_seed(0)
    grown = grow(build_target(TOY, TOKENS, 1), 3)
    ids = torch.randint(4, 300, (2, 12))
    grown.model.language_model(input_ids=ids).last_hidden_state.pow(2).sum().backward()
    one, two = (grown.model.language_model.layers[i].mlp.down_proj.weight.grad for i in (1, 2))
    assert one.abs().max() > 0
    assert not torch.equal(one, two)


def test_calibrated_visual_tokens_are_centred_and_as_large_as_words() -> None:
    torch.manual_seed(0)
    model = build_target(TOY, TOKENS, 1)
    tower = model.model.vision_tower.encoder.layers[-1].mlp.fc2
    torch.nn.init.constant_(tower.bias, 9.0)
    images = torch.randint(0, 255, (6, 192, 192, 3), dtype=torch.uint8)
    calibrate_projector(model, images)
    states = model.model.vision_tower(normalise(images), output_hidden_states=True).hidden_states
    tokens = model.model.multi_modal_projector(states[-1][:, 1:]).flatten(0, 1)
    words = model.get_input_embeddings().weight.std().item()
    assert tokens.mean(0).abs().max() < 0.05 * words
    assert tokens.std(0).mean().item() == pytest.approx(words, rel=0.05)


@pytest.mark.slow
def test_compiled_layers_learn_the_same() -> None:
    """Right up to rounding; parameters keep their names."""
    torch.manual_seed(0)
    models = [build_target(TOY, TOKENS, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    compile_layers(models[1])
    ids = torch.randint(4, 300, (2, 160))
    ids[:, 2:146] = 3
    segments = torch.zeros_like(ids)
    segments[:, 146:150], segments[:, 150:] = 1, 2
    images = torch.randint(0, 255, (2, 192, 192, 3), dtype=torch.uint8)
    batch = Batch(ids, torch.where(ids == 3, IGNORED, ids), segments, images)
    gradients = []
    for model in models:
        answer_loss(model, batch)[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-2)


def test_normalising_equals_the_processor() -> None:
    tokenizer = train_tokenizer(["a b c"], 270)
    image = torch.randint(0, 255, (192, 192, 3), dtype=torch.uint8)
    wanted = build_processor(tokenizer).image_processor(
        Image.fromarray(image.numpy()), return_tensors="pt"
    )["pixel_values"]
    torch.testing.assert_close(normalise(image[None]), wanted, atol=1e-5, rtol=1e-5)


def test_workers_draw_the_same_cache(two_photo_sets: Path) -> None:
    pictures = photos.load(two_photo_sets, "flickr8k", "train")[:3]
    for name, workers in (("alone", 0), ("two", 2)):
        ImageCache.build(two_photo_sets / name, range(40), pictures, workers=workers)
    files = sorted(path.name for path in (two_photo_sets / "alone").iterdir())
    assert len(files) > 5
    for name in files:
        one, two = ((two_photo_sets / kind / name).read_bytes() for kind in ("alone", "two"))
        assert one == two, name


@pytest.mark.parametrize("share", [0.3, 0.51])
def test_an_epoch_has_its_share_of_photographs(two_photo_sets: Path, share: float) -> None:
    pictures = photos.load(two_photo_sets, "flickr8k", "train")[:2]
    cache = ImageCache.build(two_photo_sets / "cache", range(20), pictures)
    rows = embedded_target.rows_of_an_epoch(cache, share)
    assert set(rows) == set(range(22))
    assert [rows.count(row) for row in range(20)] == [1] * 20
    assert sum(row >= 20 for row in rows) / len(rows) == pytest.approx(share, abs=0.02)


def test_mixing_moves_every_weight_its_share_of_the_way() -> None:
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    embedded_target.mix(model, other, 0.25)
    for name, value in model.state_dict().items():
        wanted = 0.75 * before[name] + 0.25 * other.state_dict()[name]
        torch.testing.assert_close(value, wanted)


def test_fonts_are_recorded_and_too_few_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for count, warned in ((20, False), (19, True)):
        found = tuple(f"/fonts/{i}.ttf" for i in range(count))
        monkeypatch.setattr(embedded_target.scenes, "fonts", lambda found=found: found)
        embedded_target.record_fonts(tmp_path)
        assert len(json.loads((tmp_path / "fonts.json").read_text())) == count
        assert ("19 fonts" in capsys.readouterr().err) == warned


def test_what_is_learnt_from_is_the_one_part_and_what_judges_the_other(
    two_photo_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: dict[str, list[str]] = {}

    def build(folder: Path, seeds: list[int], pictures: list[photos.Photo], workers: int) -> None:
        assert seeds
        assert {picture.source for picture in pictures} == {"flickr8k", "daquar"}
        names = [photos.split(picture.path.name) for picture in pictures]
        built[folder.name] = [scenes.split(seed) for seed in seeds] + names

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(embedded_target.ImageCache, "build", build)
    monkeypatch.setattr(embedded_target, "_tokenizer", stop)
    plan = embedded_target.Plan(two_photo_sets, tmp_path, tmp_path, 1.0, 50, 1, 0, TOY, 1)
    with pytest.raises(InterruptedError):
        embedded_target.prepare(plan)
    assert {part: set(found) for part, found in built.items()} == {
        "train": {"train"},
        "heldout": {"heldout"},
    }


def test_a_cache_gives_back_what_was_rendered(tmp_path: Path) -> None:
    built = ImageCache.build(tmp_path, [3, 8])
    again = ImageCache.open(tmp_path)
    assert built.turns == again.turns
    assert again.pixels.shape == (2, 192, 192, 3)
    assert again.sources == ["scene", "scene"]


@pytest.mark.slow
def test_the_recipe_makes_a_model_that_loads_and_resumes_when_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arguments(name: str) -> list[str]:
        return [
            "--data", str(tmp_path / "none"), "--work", str(tmp_path / name / "work"),
            "--out", str(tmp_path / name / "out"), "--scenes", "24", "--batch", "4", "--toy", "2",
        ]  # fmt: skip

    embedded_target.main(arguments("whole"))

    class KilledError(Exception):
        pass

    def dies(*given: object, **named: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(embedded_target, "heldout_losses", dies)
        with pytest.raises(KilledError):
            embedded_target.main(arguments("killed"))
    embedded_target.main(arguments("killed"))

    models = {
        name: AutoModelForImageTextToText.from_pretrained(tmp_path / name / "out")
        for name in ("whole", "killed")
    }
    for (name, one), two in zip(
        models["whole"].state_dict().items(), models["killed"].state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    processor = AutoProcessor.from_pretrained(tmp_path / "whole" / "out")
    inputs = processor(
        images=Image.new("RGB", (50, 80)), text="USER: <image>\nHi ASSISTANT:", return_tensors="pt"
    )
    output = models["whole"].generate(**inputs, max_new_tokens=3)
    assert output.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.slow
def test_a_model_is_trained_on_with_its_own_tokenizer(tmp_path: Path) -> None:
    def run(name: str, *more: str) -> dict[str, torch.Tensor]:
        embedded_target.main([
            "--data", str(tmp_path / "none"), "--work", str(tmp_path / f"{name} work"),
            "--out", str(tmp_path / name), "--batch", "4", "--toy", "1", *more,
        ])  # fmt: skip
        return AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict()

    first = run("first", "--scenes", "24")
    # Other scenes, of which another tokenizer would be trained.
    further = run("further", "--scenes", "16", "--seed", "2", "--start", str(tmp_path / "first"))
    one, two = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("first", "further"))
    assert one == two
    assert any(not torch.equal(first[name], further[name]) for name in first)
    for name, weights in first.items():
        torch.testing.assert_close(further[name], weights, atol=0.02, rtol=0.05)
    # Made by other processes, batches are the same; half of the way back lies in between.
    again = ("--scenes", "16", "--seed", "2", "--start", str(tmp_path / "first"))
    same = run("same", *again, "--workers", "2")
    half = run("half", *again, "--keep", "0.5")
    for name, weights in first.items():
        assert torch.equal(same[name], further[name]), name
        torch.testing.assert_close(half[name], (weights + further[name]) / 2, atol=1e-3, rtol=1e-2)
    with pytest.raises(VispecError, match="another run: rate"):
        run("further", *again, "--rate", "1e-5")


def test_what_cannot_be_trained_on_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").touch()
    for more, words in (
        (["--start", str(tmp_path)], str(tmp_path)),
        (["--keep", "0.3"], "give --start"),
        (["--rate", "1e-4"], "give --start"),
        (["--start", str(model), "--keep", "1"], "--keep 1.0 is no share"),
        (["--start", str(model), "--out", str(model)], "give another"),
    ):
        with pytest.raises(SystemExit):
            embedded_target.main(["--data", "none", "--work", "none", "--out", "none", *more])
        assert words in capsys.readouterr().err
