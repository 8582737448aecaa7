"""Drafts with adapters that no published format knows are kept in our own, whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from drafts.test_reading import NETWORKS, PAIRS, draft
from vispec.adapters import settings_of
from vispec.checkpoints import registry
from vispec.checkpoints.export import export, own_format, write
from vispec.errors import CheckpointError


@pytest.mark.parametrize(("network", "adapter"), PAIRS)
def test_what_is_written_is_read_again(network: str, adapter: str, tmp_path: Path) -> None:
    made = draft(network, adapter)
    form = write(made, tmp_path, target="someone/model")
    found = registry.plan_of(tmp_path)
    assert found.form == form == own_format(made)
    assert found.facts["target"] == "someone/model"
    again = registry.read(tmp_path)
    assert again.config == made.config
    assert (again.adapter is None) == (made.adapter is None)
    if made.adapter is not None:
        assert settings_of(again.adapter) == settings_of(made.adapter)
    state = again.state_dict()
    assert state.keys() == made.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in made.state_dict().items())


@pytest.mark.parametrize("form", ["eagle", "eagle3", "speculators"])
@pytest.mark.parametrize("network", NETWORKS)
def test_no_other_format_takes_an_adapter(network: str, form: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot hold|no word"):
        export(draft(network, "pooling"), tmp_path, form)


def test_the_closest_eagle_has_no_adapter(tmp_path: Path) -> None:
    (said,) = export(draft("eagle", "pooling"), tmp_path, "eagle", closest=True)
    assert "adapter" in said
    assert registry.read(tmp_path).adapter is None


@pytest.mark.parametrize("stated", [{"kind": "quantum"}, {"kind": "pooling"}, "pooling", 3])
def test_an_adapter_that_cannot_be_built_is_named(stated: object, tmp_path: Path) -> None:
    write(draft("eagle", "pooling"), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"adapter": stated}))
    with pytest.raises(CheckpointError, match="adapter"):
        registry.read(tmp_path)
