"""From a name to a target: a model of Hugging Face's with its processor."""

from __future__ import annotations

import os
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from vispec.checkpoints.files import (
    base_of_adapter,
    exists,
    locate,
    pinned,
    read_config,
    unweighted,
)
from vispec.checkpoints.registry import plan_at
from vispec.errors import CheckpointError, SamplingError
from vispec.targets import Target, auto_class, family, wrap

Name = str | os.PathLike[str]


def load_target(
    target: Name | PreTrainedModel | Target,
    processor: Any = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    *,
    pickled: bool = False,
    **model_options: Any,
) -> Target:
    """Load and wrap a target; see `load`."""
    if isinstance(target, Target):
        return target
    adapters = getattr(target, "peft_config", None)
    if adapters and hasattr(target, "get_base_model"):  # a PEFT model, which acts inside its base
        for config in adapters.values():
            _refuse_learned_prompts("the PEFT model given", config)
        target = target.get_base_model()
    if isinstance(target, PreTrainedModel):
        if processor is None:
            processor = _processor(target.name_or_path, target.config.model_type)
        return wrap(target, processor)
    if not isinstance(target, str | os.PathLike):
        raise CheckpointError(
            f"an object of type {type(target).__name__}",
            "is no target",
            fix="Give 'embedded', a folder, a hub name, or a loaded Hugging Face model.",
        )
    _check_numbers(dtype, device)
    name = locate(target, "target")
    for option, instead in _ELSEWHERE.items():
        if option in model_options:
            raise CheckpointError(os.fspath(target), f"is not loaded with {option}=", fix=instead)
    base = base_of_adapter(name)
    if base is not None:
        whole = load_target(base, processor, dtype, device, pickled=pickled, **model_options)
        return _adapted(whole, name, pickled)
    model_type = read_config(name).get("model_type") or ""
    kind = family(model_type, os.fspath(target))
    options = {"attn_implementation": "sdpa"} | model_options
    # A missing or damaged file is named before anything is loaded.
    if plan_at(name, name, pickled=pickled) is not None:
        raise CheckpointError(
            os.fspath(target), "is a draft, not a target", fix="Give it as the draft."
        )
    repository, revision = pinned(name)
    source = {"revision": revision} if revision else {}
    code = {k: options[k] for k in ("trust_remote_code",) if k in options}
    try:
        # Hugging Face fills what is missing with random numbers and carries on.
        model, report = auto_class(model_type).from_pretrained(
            repository,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=None if pickled else True,
            **source,
            **options,
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(os.fspath(target), f"could not be loaded: {error}") from error
    if processor is None:
        processor = _processor(repository, model_type, **source, **code)
    misshapen = [
        f"{key}: found {list(found)}, expected {list(expected)}"
        for key, found, expected in sorted(report["mismatched_keys"])
    ]
    if report["missing_keys"] or misshapen:
        raise CheckpointError(
            os.fspath(target), missing=sorted(report["missing_keys"]), misshapen=misshapen
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    placed = "device_map" in options or getattr(model, "is_quantized", False)
    return kind((model if placed else model.to(device)).eval(), processor, os.fspath(target))


def _check_numbers(dtype: str | torch.dtype, device: str | torch.device) -> None:
    """Before anything is loaded."""
    known = dtype == "auto" or isinstance(getattr(torch, str(dtype), dtype), torch.dtype)
    if not known:
        raise SamplingError("dtype", dtype, "'auto', or one of torch's, such as 'bfloat16'")
    try:
        torch.device("cpu" if device == "auto" else device)
    except RuntimeError as error:
        reason = str(error).split("\n", 1)[0]
        raise SamplingError(
            "device", device, f"'auto', or one that torch knows ({reason})"
        ) from None


_ELSEWHERE = {
    "revision": "Name it behind the model: 'owner/name@revision'.",
    "token": "Log in with `hf auth login`, or set HF_TOKEN.",
    "cache_dir": "Set HF_HUB_CACHE.",
    "subfolder": "Download the folder and give its path.",
    "use_safetensors": "Pickled weights are read with allow_pickle=True.",
    "ignore_mismatched_sizes": "A model whose weights are not all its own is not what it says.",
    "output_loading_info": "What is missing is an error.",
}
"""Options of `from_pretrained` that configurations, headers and drafts are fetched without."""


def _adapted(base: Target, name: str, pickled: bool) -> Target:
    """A target with a PEFT adapter, which lies in a folder or repository of its own."""
    weights, old = "adapter_model.safetensors", "adapter_model.bin"
    if not exists(name, weights) and not (pickled and exists(name, old)):
        raise unweighted(name, weights, [old] if exists(name, old) else [])
    repository, revision = pinned(name)
    source: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        import peft

        config = peft.PeftConfig.from_pretrained(repository, **source)
        _refuse_learned_prompts(name, config)
        model = peft.PeftModel(base.model, config)
        found = model.load_adapter(repository, "default", **source)
    except ImportError as error:
        raise CheckpointError(name, "is a PEFT adapter", fix="pip install peft") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(name, f"could not be put into '{base.name}': {error}") from error
    if found.missing_keys or found.unexpected_keys:
        raise CheckpointError(name, missing=found.missing_keys, unexpected=found.unexpected_keys)
    return wrap(model.get_base_model().eval(), base.processor, name)


def _refuse_learned_prompts(name: str, config: Any) -> None:
    if getattr(config, "is_prompt_learning", False):
        raise CheckpointError(
            name,
            "learns prompts, which act outside the model",
            fix="Only adapters that change the model itself, such as LoRA, can be a target.",
        )


def _processor(name: str, model_type: str, **options: Any) -> Any:
    """A model's processor; without its part for videos where that cannot be had.

    Raises:
        CheckpointError: if there is none.
    """
    if not name:
        raise CheckpointError(
            "the model given", "does not say where its processor is", fix="Pass processor=."
        )
    own = PROCESSOR_MAPPING_NAMES.get(model_type)
    # What a text model's tokenizer once belonged to is of no interest.
    kind = AutoProcessor if auto_class(model_type) is not AutoModelForCausalLM else AutoTokenizer
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        # Hugging Face's video processors need torchvision, and take the whole processor along.
        if is_torchvision_available() or own is None:
            raise CheckpointError(
                name, f"has no processor that can be loaded: {error}", fix="Pass processor=."
            ) from error
    try:
        return _without_videos(getattr(transformers, own)).from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(
            name,
            f"has no processor that can be loaded: {error}",
            fix="See that the folder has its tokenizer and processor files; some of Hugging Face's"
            " processors also need torchvision. Or pass processor=.",
        ) from error


def _without_videos(kind: Any) -> Any:
    """A processor's class, whose part for videos is None."""

    def others(cls: Any) -> list[str]:
        return [part for part in kind.get_attributes() if "video" not in part]

    loading: Any = type(kind.__name__, (kind,), {"get_attributes": classmethod(others)})

    def arguments(cls: Any, *args: Any, **options: Any) -> list[Any]:
        found = iter(loading._get_arguments_from_pretrained(*args, **options))
        return [None if "video" in part else next(found) for part in kind.get_attributes()]

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else kind.check_argument_for_proper_class(self, name, part)

    own = {
        "_get_arguments_from_pretrained": classmethod(arguments),
        "check_argument_for_proper_class": check,
    }
    return type(kind.__name__, (kind,), own)
