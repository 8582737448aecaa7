"""The pair that ships with the package, through the doors that users come in by."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vispec
from vispec.cli.demo import bundled_photo
from vispec.training import scenes

MODELS = Path(vispec.__file__).parent / "models"
PHOTO = Path(vispec.__file__).parent / "assets" / "motocross.jpg"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exact() -> vispec.Engine:
    """The pair in the precision in which greedy texts have to be equal."""
    return vispec.load("embedded", "embedded", dtype=torch.float64)


def pictures() -> list[tuple[str, object]]:
    """The photograph and a held-out scene of every task, each with a question."""
    found: list[tuple[str, object]] = [("Describe the photo.", bundled_photo())]
    seed = next(s for s in range(10_000) if scenes.split(s) == "heldout")
    for task in scenes.TASKS:
        sample = scenes.scene(seed, task)
        found.append((sample.question, sample.image))
    return found


def test_greedy_text_is_what_generate_gives(exact: vispec.Engine) -> None:
    for question, image in pictures():
        prompt = exact.target.encode(question, [image])
        with torch.inference_mode():
            out = exact.target.model.generate(**prompt.inputs, max_new_tokens=48, do_sample=False)
        ours = exact.generate(question, [image], max_new_tokens=48, temperature=0)
        assert list(ours.token_ids) == out[0, len(prompt) :].tolist()


def test_sampled_text_is_the_plain_loops(exact: vispec.Engine) -> None:
    for seed, (question, image) in enumerate(pictures()):
        texts = {
            tuple(
                exact.generate(
                    question, [image], max_new_tokens=40, temperature=0.8, seed=seed, speculate=on
                ).token_ids
            )
            for on in (True, False)
        }
        assert len(texts) == 1


def test_the_draft_is_worth_having_and_the_picture_matters(exact: vispec.Engine) -> None:
    tokens = passes = 0
    texts = set()
    for _, image in pictures():
        result = exact.generate("Describe the picture.", [image], max_new_tokens=64, temperature=0)
        tokens += result.stats.new_tokens - 1
        passes += result.stats.target_passes
        texts.add(result.text)
    assert len(texts) > 1
    # One token a pass is what a useless draft gives, and two or so a table of bigrams.
    assert tokens / passes > 3


def test_what_is_shipped_is_small_and_says_its_licence() -> None:
    weights = list(MODELS.rglob("*.safetensors"))
    assert max(file.stat().st_size for file in weights) < 16e6
    assert sum(file.stat().st_size for file in weights) < 44e6
    for part in ("target", "draft"):
        assert "research use only" in (MODELS / part / "LICENSE").read_text()
        assert "research use only" in (MODELS / part / "README.md").read_text()


def test_the_repository_stays_small() -> None:
    """What everyone clones: weights, results and pictures among it."""
    root = Path(__file__).resolve().parent.parent
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    sizes = [(root / name).lstat().st_size for name in listed.stdout.split("\0") if name]
    assert max(sizes) < 16e6
    assert sum(sizes) < 60e6


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vispec", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_line_gives_the_same_tokens_plainly_and_speculatively() -> None:
    words = ("generate", "--image", str(PHOTO), "--max-new-tokens", "40", "--json")
    for extra in ((), ("--temperature", "0.9", "--seed", "5")):
        ran = [command(*words, *extra, *mode, "What do you see?") for mode in ((), ("--plain",))]
        assert [r.returncode for r in ran] == [0, 0], ran[0].stderr + ran[1].stderr
        drafted, plain = (json.loads(r.stdout) for r in ran)
        assert drafted["token_ids"] == plain["token_ids"]
        assert drafted["stats"]["target_passes"] <= plain["stats"]["target_passes"]
        assert drafted["stats"]["acceptance_length"] > 1


def test_the_demo_ends_well() -> None:
    ran = command("demo")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("yes") >= 3
    # What the photograph shows, and what was asked about the scene.
    assert "a green jacket is riding a dirt bike" in ran.stdout
    assert "the grey cross is to the right of the purple triangle." in ran.stdout


def test_info_says_that_the_pair_fits() -> None:
    ran = command("info", "embedded")
    assert ran.returncode == 0, ran.stderr
    assert "research use only" in ran.stdout
