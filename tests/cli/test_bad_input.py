"""Whatever is wrong, the answer is one clear message, exit code 2 and no trace."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import vispec
from command_line import QUESTION, Pair, Ran, Run, write_draft
from vispec.cli import main
from vispec.errors import CheckpointError

Damage = Callable[[Path], None]


def refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


@pytest.fixture
def target_copy(pair: Pair, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair.target, tmp_path / "target"))


@pytest.fixture
def draft_copy(pair: Pair, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair.draft, tmp_path / "draft"))


# --- Pictures -----------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:800])


def bomb(path: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(path, "PNG")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (truncated, ["damaged or cut short"]),
        (bomb, ["12000 x 12000", "limit of 64 million", "scale it down"]),
        (lambda path: path.write_text("not a picture at all\n"), ["not a picture", "JPEG"]),
        (lambda path: path.touch(), ["empty"]),
        (lambda path: path.mkdir(), ["is a folder"]),
        (lambda path: None, ["no such file"]),
    ],
    ids=["truncated", "bomb", "text", "empty", "folder", "absent"],
)
def test_pictures_that_are_none(run: Run, tmp_path: Path, make: Damage, words: list[str]) -> None:
    path = tmp_path / "picture.jpg"
    make(path)
    refused(run("generate", "--image", path, QUESTION), str(path), *words)
    refused(run("demo", "--image", path), str(path), *words)


# --- Settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--max-new-tokens", "0", ["max_new_tokens is 0", "at least 1"]),
        ("--max-new-tokens", "-5", ["max_new_tokens is -5", "at least 1"]),
        ("--max-new-tokens", "many", ["--max-new-tokens", "many"]),
        ("--temperature", "-1", ["temperature is -1.0", "positive"]),
        ("--temperature", "nan", ["temperature is nan"]),
        ("--temperature", "hot", ["--temperature", "hot"]),
        ("--top-p", "1.5", ["top_p is 1.5", "at most 1"]),
        ("--top-p", "0", ["top_p is 0.0", "above 0"]),
        ("--top-k", "-1", ["top_k is -1"]),
        ("--min-p", "2", ["min_p is 2.0", "from 0 to 1"]),
        ("--repetition-penalty", "0", ["repetition_penalty is 0.0", "positive"]),
        ("--stop", "", ["stop is", "non-empty"]),
        ("--dtype", "int3", ["--dtype", "int3", "bfloat16"]),
        ("--device", "toaster", ["device 'toaster' cannot be used", "--device cpu"]),
        ("--tree", "1,2", ["'1,2' is no tree", "SIZE,DEPTH,WIDTH"]),
        ("--tree", "1,4,8", ["tree size is 1", "at least 2"]),
        ("--tree", "0", ["tree"]),
        ("--accept", "always", ["--accept", "always", "keyed"]),
    ],
)
def test_settings_outside_their_range(
    run: Run, pair: Pair, option: str, value: str, words: list[str]
) -> None:
    models = ["--target", pair.target, "--draft", pair.draft]
    refused(run("generate", *models, f"{option}={value}", QUESTION), *words)


def test_a_prompt_longer_than_the_context(run: Run, pair: Pair) -> None:
    ran = run("generate", "--target", pair.target, "--draft", pair.draft, "hello " * 500)
    refused(ran, "the prompt takes", "context holds 256")


class TerminalInput(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_prompt_and_an_empty_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run("generate", " "), "the prompt is empty")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    refused(run("generate"), "the prompt is empty")
    monkeypatch.setattr(sys, "stdin", TerminalInput())
    refused(run("generate"), "no prompt", "pipe it in")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00"), "utf-8"))
    refused(run("generate"), "not text")


def test_unknown_verbs_and_options(run: Run) -> None:
    refused(run("generat", QUESTION), "generat", "Try 'vispec --help'")
    refused(run("generate", "--immage", "x", QUESTION), "--immage", "--help'")
    refused(run(), "VERB", "Try 'vispec --help'")


# --- Targets ------------------------------------------------------------------------------------


def edit_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def edit_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    layer = "language_model.model.layers.1.mlp"
    del tensors[f"{layer}.up_proj.weight"]
    tensors[f"{layer}.down_proj.weight"] = tensors[f"{layer}.down_proj.weight"][:5].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_in_half(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: edit_config(f, model_type="blip"), ["'blip'", "supported are: ", "llava"]),
        (lambda f: (f / "config.json").unlink(), ["config.json"]),
        (lambda f: (f / "config.json").write_text("{"), ["config.json", "not JSON"]),
        (lambda f: (f / "config.json").write_text("[]"), ["config.json", "not an object"]),
        (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors"]),
        (pickled, ["model.safetensors", "convert"]),
        (cut_in_half, ["unreadable model.safetensors"]),
        (edit_weights, ["missing (1)", "up_proj", "shape (1)", "found [5, 64], expected [32, 64]"]),
        (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer"]),
        (lambda f: (f / "processor_config.json").unlink(), ["no processor that can be loaded"]),
        (lambda f: (f / "chat_template.jinja").unlink(), ["no chat template"]),
    ],
    ids=[
        "family",
        "no config",
        "broken config",
        "list config",
        "no weights",
        "pickled",
        "cut",
        "tensors",
        "no tokenizer",
        "no processor",
        "no chat template",
    ],
)
def test_targets_that_cannot_be_loaded(
    run: Run, target_copy: Path, damage: Damage, words: list[str]
) -> None:
    damage(target_copy)
    ran = run("generate", "--target", target_copy, "--draft", "none", QUESTION)
    refused(ran, str(target_copy), *words)


def test_a_hub_name_without_a_network_names_the_missing_file(run: Run, pair: Pair) -> None:
    name = "someone/never-downloaded"
    for words in (
        ["generate", "--target", name, "--draft", "none", QUESTION],
        ["generate", "--target", pair.target, "--draft", name, QUESTION],
        ["info", name],
    ):
        refused(run(*words), name, "config.json", "path of a folder")


# --- Drafts -------------------------------------------------------------------------------------


def edit_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["extra.weight"] = tensors["img_fc.weight"].clone()
    tensors["imadpt.k_proj.weight"] = tensors["imadpt.k_proj.weight"][:5].clone()
    del tensors["layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            edit_tensors,
            [
                "missing (1)",
                "layers.0.mlp.up_proj.weight",
                "unexpected (1)",
                "extra.weight",
                "of the wrong shape (1)",
                "imadpt.k_proj.weight: found [5, 32], expected [",
            ],
        ),
        (cut_in_half, ["unreadable model.safetensors"]),
        (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors"]),
        (lambda f: (f / "config.json").write_text("{}"), ["hidden_size", "vocab_size"]),
    ],
    ids=["tensors", "cut", "no weights", "empty config"],
)
def test_drafts_that_cannot_be_loaded(
    run: Run, pair: Pair, draft_copy: Path, damage: Damage, words: list[str]
) -> None:
    damage(draft_copy)
    ran = run("generate", "--target", pair.target, "--draft", draft_copy, QUESTION)
    refused(ran, str(draft_copy), *words)


def test_a_draft_for_another_model_lists_all_that_differs(
    run: Run, pair: Pair, tmp_path: Path
) -> None:
    draft = write_draft(tmp_path / "other", 64, pair.vocabulary + 7)
    ran = run("generate", "--target", pair.target, "--draft", draft, QUESTION)
    refused(ran, "hidden size 64", str(pair.hidden), str(pair.vocabulary + 7), str(pair.vocabulary))
    refused(ran, str(draft), str(pair.target), "trained for another model")


def test_a_target_given_as_the_draft_is_refused(run: Run, pair: Pair) -> None:
    ran = run("generate", "--target", pair.target, "--draft", pair.target, QUESTION)
    refused(ran, str(pair.target), "is the target itself")


def test_an_attention_that_is_not_installed(pair: Pair) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)could not be loaded.*[Ff]lash"):
        vispec.load(pair.target, attn_implementation="flash_attention_2")


# --- Leaving ------------------------------------------------------------------------------------


def test_control_c_leaves_with_130_and_no_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vispec.cli.generate.load_image", interrupted)
    assert main(["generate", "--image", "x.png", QUESTION]) == 130
    assert capsys.readouterr().err.endswith("vispec: interrupted\n")
    monkeypatch.setattr("vispec.cli.train.run", interrupted)
    assert main(["train", "x.toml"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command goes on from there\n")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
def test_a_real_control_c_and_a_reader_that_leaves(pair: Pair) -> None:
    words = [sys.executable, "-m", "vispec", "generate", "--target", str(pair.target)]
    words += ["--draft", str(pair.draft), "-n", "220", "--temperature", "1.5", QUESTION]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background jobs ignore control-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err

    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
