"""Folders of weights that are whole, split, cut short, pickled or absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vispec.checkpoints import files
from vispec.checkpoints.files import (
    fetch,
    fingerprint,
    locate,
    read_config,
    read_tensors,
    tensor_headers,
    weight_files,
)
from vispec.errors import CheckpointError

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "b.weight": torch.arange(4, dtype=torch.bfloat16),
    "c.weight": torch.arange(5),
}


def write_single(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path, shards: int = 3) -> Path:
    """Every tensor in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for number, (key, tensor) in enumerate(TENSORS.items(), 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file({key: tensor}, folder / file)
        index[key] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def assert_same(found: dict[str, Tensor]) -> None:
    assert set(found) == set(TENSORS)
    for key, tensor in TENSORS.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_tensors_and_their_headers_are_read_from_one_file_or_several(
    write: object, tmp_path: Path
) -> None:
    folder = str(write(tmp_path))  # type: ignore[operator]
    assert_same(read_tensors(folder))
    headers = {key: (shape, kind) for key, shape, kind in tensor_headers(folder)}
    assert headers == {
        "a.weight": ((2, 3), "F32"),
        "b.weight": ((4,), "BF16"),
        "c.weight": ((5,), "I64"),
    }


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path)
    for number in (1, 3):
        (folder / f"model-{number:05d}-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks shards that its index names") as error:
        read_tensors(str(folder))
    assert error.value.missing == (
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    )


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '"text"', "\udcff\udcfe"])
def test_a_broken_index_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        weight_files(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("read", [read_tensors, lambda name: list(tensor_headers(name))])
def test_a_file_cut_short_is_named_and_not_a_traceback(
    share: float, read: object, tmp_path: Path
) -> None:
    path = write_single(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"unreadable model\.safetensors") as error:
        read(str(tmp_path))  # type: ignore[operator]
    assert str(tmp_path) in str(error.value)


def test_a_page_saved_in_place_of_the_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("<html>not found</html>" * 20)
    with pytest.raises(CheckpointError, match=r"unreadable model\.safetensors"):
        read_tensors(str(tmp_path))


def test_a_folder_without_weights_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no weights") as error:
        weight_files(str(tmp_path))
    assert error.value.missing == ("model.safetensors",)
    assert "pickled" not in str(error.value)


def test_pickled_weights_are_refused_with_the_reason_and_never_opened(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled") as error:
        read_tensors(str(tmp_path))
    assert "run code when opened" in str(error.value)
    assert "safetensors" in str(error.value)


def test_a_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava", "name": "é"}', encoding="utf-8")
    assert read_config(str(tmp_path)) == {"model_type": "llava", "name": "é"}


def test_an_absent_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no configuration") as error:
        read_config(str(tmp_path))
    assert error.value.missing == ("config.json",)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{", b"not json", b"\xff\xfe\x00", b'{"a": 1}}'])
def test_a_configuration_that_is_not_json_is_told_so(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="not JSON"):
        read_config(str(tmp_path))


@pytest.mark.parametrize("text", ["[]", "3", "null", '"llava"'])
def test_a_configuration_that_is_no_object_is_told_so(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="not an object"):
        read_config(str(tmp_path))


def test_a_name_that_is_no_folder_is_looked_for_on_the_hub_and_says_what_is_missing() -> None:
    with pytest.raises(CheckpointError, match="not a folder on this machine") as error:
        read_config("nobody/no-such-model")
    assert "config.json" in error.value.missing
    assert "path of a folder" in str(error.value)


@pytest.mark.parametrize("name", ["no/such/folder/here", "./missing", "", "a b"])
def test_an_impossible_name_is_a_checkpoint_error(name: str) -> None:
    with pytest.raises(CheckpointError):
        read_config(name)


def test_a_folder_lacks_a_file_without_error(tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    assert fetch(str(tmp_path), "here.txt") == tmp_path / "here.txt"
    assert fetch(str(tmp_path), "absent.txt") is None
    assert fetch(str(tmp_path), "folder") is None


def test_embedded_names_a_packaged_folder_and_other_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "EMBEDDED", tmp_path)
    assert locate("someone/model") == "someone/model"
    assert locate("embedding") == "embedding"
    with pytest.raises(CheckpointError, match=r"'embeded' is no folder here\nDid you mean 'embedd"):
        locate("embeded", "draft")
    assert locate(Path("a") / "b") == str(Path("a") / "b")
    for role in ("target", "draft"):
        with pytest.raises(CheckpointError, match=f"no {role} in this installation"):
            locate("embedded", role)
        (tmp_path / role).mkdir()
        (tmp_path / role / "config.json").write_text("{}")
        assert locate("embedded", role) == str(tmp_path / role)


def test_a_fingerprint_is_of_all_bytes_of_all_files(tmp_path: Path) -> None:
    parts = [bytes(range(256)) * 5000, b"more"]
    for number, part in enumerate(parts):
        (tmp_path / f"model-{number}.safetensors").write_bytes(part)
    assert fingerprint(tmp_path) == hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    one = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert fingerprint(tmp_path) == one
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != one
