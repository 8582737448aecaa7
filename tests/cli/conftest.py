"""A tiny pair on disk, whole with tokenizer and processor, and a way to run the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from command_line import Pair, Ran, Run, write_draft
from vispec.cli import main
from vispec.training.tokenizer import EOS, IMAGE, PAD, build_processor, train_tokenizer

SENTENCES = ["a red circle stands above a blue square .", "what is this ?", "it reads river ."]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    tokenizer = train_tokenizer(SENTENCES * 2, vocabulary=300)
    model = tiny.llava(torch.float32, vocab_size=len(tokenizer))
    model.config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(EOS)
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids(PAD)
    model.save_pretrained(folder / "target")
    build_processor(tokenizer, size=12, patch=4).save_pretrained(folder / "target")
    write_draft(folder / "draft", tiny.HIDDEN, len(tokenizer))
    return Pair(folder / "target", folder / "draft", tiny.HIDDEN, len(tokenizer))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((20, 10)).convert("RGB").save(path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `vispec` with these words, and return exit code and output."""

    def call(*words: object) -> Ran:
        try:
            code = main([str(word) for word in words])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call
