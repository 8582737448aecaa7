"""Medusa's heads are kept under the published names, and loaded to draft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import talking
import tiny
import vispec
from vispec.checkpoints import registry
from vispec.checkpoints.export import export, write
from vispec.checkpoints.files import tensor_headers
from vispec.checkpoints.summary import mismatches, summarise
from vispec.drafts.medusa import MedusaConfig, MedusaDraft
from vispec.errors import CheckpointError


def draft(own: bool, layers: int = 2) -> MedusaDraft:
    torch.manual_seed(0)
    made = MedusaDraft(MedusaConfig(tiny.HIDDEN, tiny.VOCAB, 3, layers, own))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_written_is_read_again(own: bool, layers: int, tmp_path: Path) -> None:
    made = draft(own, layers)
    assert write(made, tmp_path, target="someone/model") == "medusa"
    names = {name for name, _, _ in tensor_headers(str(tmp_path))}
    expected = {f"{i}.{j}.linear.{w}" for i in range(3) for j in range(layers)
                for w in ("weight", "bias")}  # fmt: skip
    assert names == expected | ({f"{i}.{layers}.weight" for i in range(3)} if own else set())
    found = summarise(tmp_path)
    assert (found.form, found.problems, found.trained_for) == ("medusa", [], "someone/model")
    again = registry.read(tmp_path)
    assert again.config == made.config
    assert all(torch.equal(again.state_dict()[k], v) for k, v in made.state_dict().items())


def test_heads_from_a_folder_draft_for_their_target_and_no_other(tmp_path: Path) -> None:
    target = talking.save(tmp_path / "target")
    write(draft(False), tmp_path / "draft")
    assert mismatches(tmp_path / "draft", target) == []
    engine = vispec.load(target, tmp_path / "draft", dtype=torch.float64)
    asked = {"images": [talking.picture(0)], "max_new_tokens": 12, "temperature": 0}
    plain = engine.generate("the cat", speculate=False, **asked)
    assert engine.generate("the cat", **asked).token_ids == plain.token_ids
    other = MedusaDraft(MedusaConfig(tiny.HIDDEN, tiny.VOCAB + 1, 3, 1, True))
    write(other, tmp_path / "other")
    assert "vocabulary" in "".join(mismatches(tmp_path / "other", target))
    with pytest.raises(CheckpointError, match="cannot hold"):
        export(other, tmp_path / "out", "eagle")
