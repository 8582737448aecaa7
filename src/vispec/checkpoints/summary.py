"""What a checkpoint is, from its configuration and the headers of its files alone."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils.hub import is_offline_mode

from vispec.checkpoints.files import (
    base_of_adapter,
    card_entry,
    licence,
    locate,
    pinned,
    read_config,
    tensor_headers,
)
from vispec.checkpoints.formats import Plan, advised_tree
from vispec.checkpoints.registry import plan
from vispec.drafts.base import Draft
from vispec.errors import CheckpointError, DraftMismatchError
from vispec.targets import FAMILIES, Target, auto_class, family
from vispec.targets.base import cache_shapes

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Size of an element of each safetensors type."""

Headers = Mapping[str, tuple[tuple[int, ...], str]]
"""Tensor name to shape and safetensors type."""


@dataclass(frozen=True)
class Summary:
    """A checkpoint in numbers.

    Attributes:
        name: as it was asked for.
        kind: `"target"`, `"draft"`, or `"unknown"`. The folder of a PEFT adapter is the target that
            it makes of its base, which is what the numbers are of.
        form: a target's `model_type`, a draft's format.
        trained_for: the target that a draft's configuration or model card names, or a PEFT adapter.
        supported: whether vispec can decode with it.
        parameters: elements of all its tensors.
        parts: parameters of each of its modules.
        weights_bytes: of the tensors as they are stored.
        stored_as: safetensors types, the most frequent first.
        memory_bytes: of the weights once loaded, by number format.
        cache_bytes_per_token: of the target's keys and values in two-byte numbers; 0 for a draft.
        context: positions the target can hold; 0 for a draft.
        geometry: layers, hidden size and the like.
        licence: as its files state it, None where they do not.
        problems: what is wrong with its tensors.
    """

    name: str
    kind: str
    form: str
    trained_for: str | None
    supported: bool
    parameters: int
    parts: dict[str, int]
    weights_bytes: int
    stored_as: list[str]
    memory_bytes: dict[str, int]
    cache_bytes_per_token: int
    context: int
    geometry: dict[str, Any]
    licence: str | None
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def summarise(
    name: str | os.PathLike[str], role: str = "target", *, pickled: bool = False
) -> Summary:
    """Describe a checkpoint without reading its weights.

    Args:
        name: a folder, a hub name, or `"embedded"`.
        role: which of the embedded pair is meant, `"target"` or `"draft"`.
        pickled: look into pickled weights where there are no others.

    Raises:
        CheckpointError: if there is no such checkpoint, or its files cannot be read.
    """
    place = locate(name, role)
    base = base_of_adapter(place)
    if base is not None:
        return replace(
            summarise(base, role, pickled=pickled),
            name=os.fspath(name),
            trained_for=base,
            licence=licence(place),
        )
    config = read_config(place)
    headers = read_headers(place, pickled=pickled)
    shapes = {key: shape for key, (shape, _) in headers.items()}
    found = plan(config, shapes, os.fspath(name))
    text = config.get("transformer_layer_config") or config.get("text_config") or config
    if found is not None:
        form, kind = found.form, "draft"
        supported = isinstance(found.network, Draft)
        error = found.problems(os.fspath(name), shapes)
        problems = str(error).splitlines() if error else []
        try:
            advised_tree(found, os.fspath(name))
        except CheckpointError as wrong:
            problems.append(str(wrong))
        cache, context = 0, 0
    else:
        form = str(config.get("model_type") or "without model_type")
        supported = form in FAMILIES
        kind = "target" if supported or "vision_config" in config else "unknown"
        problems, cache = [], 0
        known = _text_config(place)
        if known is not None:
            text = known.to_dict()
            cache = _cache_bytes_per_token(known) if supported else 0
        context = int(text.get("max_position_embeddings") or 0)
    sizes = {key: math.prod(shape) for key, (shape, _) in headers.items()}
    total = sum(sizes.values())
    types = Counter(kind for _, kind in headers.values())
    return Summary(
        name=os.fspath(name),
        kind=kind,
        form=form,
        trained_for=_trained_for(found, place) if found is not None else None,
        supported=supported,
        parameters=total,
        parts=_parts(sizes),
        weights_bytes=sum(sizes[key] * BYTES.get(t, 1) for key, (_, t) in headers.items()),
        stored_as=[t for t, _ in types.most_common()],
        memory_bytes={"float32": 4 * total, "bfloat16": 2 * total, "float16": 2 * total},
        cache_bytes_per_token=cache,
        context=context,
        geometry={
            key: text[key]
            for key in (
                "num_hidden_layers",
                "hidden_size",
                "num_attention_heads",
                "num_key_value_heads",
                "vocab_size",
            )
            if text.get(key) is not None
        },
        licence=licence(place),
        problems=problems,
    )


def mismatches(
    draft: str | os.PathLike[str], target: str | os.PathLike[str], *, pickled: bool = False
) -> list[str]:
    """Why a draft does not fit a target, without reading the weights of either; empty if it does.

    Raises:
        CheckpointError: if one of them cannot be read, or the first is not a draft.
        UnsupportedFamilyError: if vispec has no file for the target's family.
    """
    place = locate(draft, "draft")
    shapes = {key: shape for key, (shape, _) in read_headers(place, pickled=pickled).items()}
    found = plan(read_config(place), shapes, os.fspath(draft))
    if found is None:
        swapped = read_config(place).get("model_type") in FAMILIES
        fix = "It is a target; name the draft first, and the target behind --target."
        raise CheckpointError(draft, "is not a draft of a known format", fix=fix if swapped else "")
    _refuse_draft(target, pickled)
    try:
        found.network.check(target_structure(target))  # type: ignore[operator]
    except DraftMismatchError as error:
        return list(error.mismatches)
    return []


def _refuse_draft(target: str | os.PathLike[str], pickled: bool) -> None:
    place = locate(target, "target")
    try:
        shapes = {key: shape for key, (shape, _) in read_headers(place, pickled=pickled).items()}
    except CheckpointError:  # a configuration is enough to compare with
        return
    if plan(read_config(place), shapes, os.fspath(target)) is not None:
        raise CheckpointError(target, "is a draft, not a target")


def target_structure(name: str | os.PathLike[str]) -> Target:
    """A target on the meta device: its geometry, without weights and without a processor.

    Raises:
        CheckpointError: if its configuration cannot be read.
        UnsupportedFamilyError: if vispec has no file for its family.
    """
    place = locate(name, "target")
    place = base_of_adapter(place) or place
    model_type = read_config(place).get("model_type") or ""
    kind = family(model_type, os.fspath(name))
    with torch.device("meta"):
        model = auto_class(model_type).from_config(_config(place))
    return kind(model, None, os.fspath(name))


def read_headers(place: str, *, pickled: bool = False) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor; of a hub repository, the headers alone are fetched.

    Raises:
        CheckpointError: if the files are missing or unreadable.
    """
    if Path(place).is_dir() or is_offline_mode():
        return _read(place, pickled)
    import huggingface_hub as hub

    try:
        repository, revision = pinned(place)
        found = hub.get_safetensors_metadata(repository, revision=revision)
        files = found.files_metadata.values()
    except hub.errors.NotASafetensorsRepoError:
        return _read(place, pickled)
    except Exception as error:  # the hub's own errors, and those of whichever client it uses
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError.unavailable(place, ["model.safetensors"], reason) from error
    return {
        key: (tuple(tensor.shape), str(tensor.dtype))
        for file in files
        for key, tensor in file.tensors.items()
    }


def _read(place: str, pickled: bool) -> dict[str, tuple[tuple[int, ...], str]]:
    return {key: (shape, kind) for key, shape, kind in tensor_headers(place, pickled=pickled)}


def _trained_for(draft: Plan, place: str) -> str | None:
    return draft.facts.get("target") or card_entry(place, "base_model")


def _config(place: str) -> Any:
    repository, revision = pinned(place)
    return AutoConfig.from_pretrained(repository, **({"revision": revision} if revision else {}))


def _text_config(place: str) -> Any:
    """The language model's, with the family's defaults filled in; None where Hugging Face does not
    know the family."""
    try:
        return _config(place).get_text_config()
    except (OSError, ValueError, KeyError):
        return None


def _cache_bytes_per_token(text: Any) -> int:
    """Keys and values of one position in every layer that keeps some, two bytes a number."""
    return sum(2 * 2 * heads * size for heads, size in filter(None, cache_shapes(text)))


def _parts(sizes: Mapping[str, int]) -> dict[str, int]:
    """Parameters by module: the first name that tells anything apart."""
    parts: Counter[str] = Counter()
    for key, size in sizes.items():
        words = [word for word in key.split(".")[:-1] if word != "model"]
        parts[words[0] if words else key] += size
    return dict(parts.most_common())
