"""Folders of a configuration and safetensors, wherever they lie."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.hub import cached_file, is_offline_mode

from vispec.errors import CheckpointError

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
"""Names of number formats in safetensors files."""
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE")
EMBEDDED = Path(__file__).parent.parent / "models"
"""Where the embedded pair lies: the folders `target` and `draft`."""


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """What tells the weights of a local folder from all others."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()[:16]


def locate(name: str | os.PathLike[str], role: str = "target") -> str:
    """Resolve `embedded` to the packaged folder of that `role`; leave any other name as it is.

    Raises:
        CheckpointError: if the embedded model is not installed, or for a name that is no folder
            and nearly this one, which would be looked for on the hub.
    """
    if os.fspath(name) != "embedded":
        near = difflib.get_close_matches(os.fspath(name), ["embedded"], cutoff=0.8)
        if near and not Path(name).exists():
            raise CheckpointError(
                os.fspath(name), "is no folder here", fix="Did you mean 'embedded'?"
            )
        return os.fspath(name)
    folder = EMBEDDED / role
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "embedded",
            f"has no {role} in this installation",
            missing=[str(folder / "config.json")],
            fix="Install vispec from a full checkout or wheel, or name another model.",
        )
    return str(folder)


def pinned(name: str) -> tuple[str, str | None]:
    """A folder, or a hub repository and its revision where `name` is `repository@revision`."""
    if Path(name).exists() or "@" not in name:
        return name, None
    repository, _, revision = name.rpartition("@")
    return repository, revision


def fetch(name: str, file: str) -> Path | None:
    """The path of one file of a folder or hub repository, None where it has no such file.

    Raises:
        CheckpointError: if `name` is neither a folder nor can be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    repository, revision = pinned(name)
    try:
        found = cached_file(
            repository, file, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError.unavailable(name, [file], reason) from error
    return Path(found) if found else None


def read_config(name: str) -> dict[str, Any]:
    """The checkpoint's `config.json`.

    Raises:
        CheckpointError: if there is none, or it is not JSON.
    """
    path = fetch(name, "config.json")
    if path is None:
        if not Path(name).is_dir():  # offline, the hub is not even asked
            raise CheckpointError.unavailable(name, ["config.json"])
        raise CheckpointError(name, "has no configuration", missing=["config.json"])
    return read_object(name, path)


def read_object(name: str, path: Path) -> dict[str, Any]:
    """What a JSON file of the checkpoint `name` holds.

    Raises:
        CheckpointError: if it is not JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(name, f"has a {path.name} that is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(name, f"has a {path.name} that is not an object")
    return found


def licence(place: str) -> str | None:
    """The licence that a model card's header or a licence file states."""
    stated = card_entry(place, "license_name"), card_entry(place, "license")
    for name in stated:
        if name and name != "other":
            return name
    for name in LICENCE_FILES:
        file = fetch(place, name)
        if file is not None:
            words = file.read_text(errors="replace").split("\n")
            return next((line.strip(" #") for line in words if line.strip(" #")), None)
    return None


def card_entry(place: str, key: str) -> str | None:
    """What the header of a model card states under a key; of a list, the first."""
    card = fetch(place, "README.md")
    header = card and re.match(r"---\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL)
    if not header:
        return None
    stated = re.search(rf"^{key}:[ \t]*(?:\n\s*-\s*)?(\S.*?)\s*$", header.group(1), re.MULTILINE)
    return stated.group(1).strip("'\"") if stated else None


def base_of_adapter(name: str) -> str | None:
    """The model that a PEFT adapter's folder or repository names, pinned as it pins it.

    None where it holds no adapter, or a whole model beside it.

    Raises:
        CheckpointError: if it names none.
    """
    stated = None if fetch(name, "config.json") else fetch(name, "adapter_config.json")
    if stated is None:
        return None
    adapter = read_object(name, stated)
    base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    if not base:
        raise CheckpointError(
            name,
            "is a PEFT adapter that does not say of which model",
            fix="Set base_model_name_or_path in its adapter_config.json.",
        )
    return f"{base}@{revision}" if revision and not Path(base).exists() else str(base)


def weight_files(name: str, *, pickled: bool = False) -> list[Path]:
    """The checkpoint's safetensors files, shards in order.

    Args:
        pickled: where there are none, take pickled weights, which can run code when opened.

    Raises:
        CheckpointError: if there are none, or none but pickled ones.
    """
    files = _sharded(name, "model.safetensors")
    if files is not None:
        return files
    if pickled and (old := _sharded(name, "pytorch_model.bin")) is not None:
        return old
    names = ("pytorch_model.bin", "pytorch_model.bin.index.json")
    has_old = not pickled and any(exists(name, file) for file in names)
    if not has_old and not Path(name).is_dir() and is_offline_mode():
        raise CheckpointError.unavailable(name, ["model.safetensors"], "offline mode is on")
    raise unweighted(name, "model.safetensors", names[:1] if has_old else ())


def unweighted(name: str, file: str, pickled: Sequence[str] = ()) -> CheckpointError:
    """The error for a checkpoint that lacks a file of weights.

    Args:
        pickled: what it has in place of that.
    """
    fix = (
        f"It has pickled weights ({pickled[0]}), which can run code when opened; convert them"
        " to safetensors first, or insist with allow_pickle=True (--allow-pickle)."
        if pickled
        else ""
    )
    return CheckpointError(name, "has no weights", missing=[file], fix=fix)


def exists(name: str, file: str) -> bool:
    """Whether a folder or hub repository has a file, which is not fetched."""
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    if is_offline_mode():
        return fetch(name, file) is not None
    import huggingface_hub as hub

    repository, revision = pinned(name)
    try:
        return hub.file_exists(repository, file, revision=revision)
    except Exception:  # the hub's own errors, and those of whichever client it uses
        return False


def _sharded(name: str, file: str) -> list[Path] | None:
    """One file, or the shards that its index lists; None where there is neither."""
    single = fetch(name, file)
    if single is not None:
        return [single]
    index = fetch(name, f"{file}.index.json")
    if index is None:
        return None
    weight_map = read_object(name, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(name, f"has a {index.name} without a weight_map")
    shards = sorted(set(map(str, weight_map.values())))
    files = [(shard, fetch(name, shard)) for shard in shards]
    missing = [shard for shard, path in files if path is None]
    if missing:
        raise CheckpointError(name, "lacks shards that its index names", missing=missing)
    return [path for _, path in files if path is not None]


def tensor_headers(
    name: str, *, pickled: bool = False
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """`(name, shape, dtype)` of every tensor, without reading the weights."""
    for path in weight_files(name, pickled=pickled):
        try:
            if path.suffix == ".bin":
                for key, tensor in _unpickled(path, "meta").items():
                    yield key, tuple(tensor.shape), TYPES.get(tensor.dtype, str(tensor.dtype))
                continue
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    view = file.get_slice(key)
                    yield key, tuple(view.get_shape()), view.get_dtype()
        except Exception as error:  # safetensors raises its own error, and OSError
            raise _unreadable(name, path, error) from error


def read_tensors(name: str, *, pickled: bool = False) -> dict[str, Tensor]:
    """Every tensor of the checkpoint."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(name, pickled=pickled):
        try:
            tensors |= _unpickled(path, "cpu") if path.suffix == ".bin" else load_file(path)
        except Exception as error:
            raise _unreadable(name, path, error) from error
    return tensors


def _unreadable(name: str, path: Path, error: Exception) -> CheckpointError:
    # Behind its first sentence torch recommends to open pickles that it has just refused.
    reason = str(error).split("\n", 1)[0].split(". ", 1)[0]
    return CheckpointError(
        name, f"has an unreadable {path.name}: {reason}", fix="Copy or download it again."
    )


def _unpickled(path: Path, device: str) -> dict[str, Tensor]:
    """A pickled state dictionary, tensors alone."""
    found = torch.load(path, map_location=device, weights_only=True)
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}
