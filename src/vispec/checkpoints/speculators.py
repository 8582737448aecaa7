"""What speculators' formats have in common: who uses a draft how, and with which target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vispec.checkpoints.formats import decoder_config


def kind(config: Mapping[str, Any]) -> str | None:
    """The algorithm that a configuration names; None where it is of another format."""
    return config.get("speculators_model_type")


def configuration(
    algorithm: str,
    architecture: str,
    c: Any,
    *,
    layer_type: str,
    tokens: int,
    dtype: torch.dtype,
    own: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """A `config.json`.

    Args:
        algorithm: in their words.
        architecture: the class that loads it.
        c: the draft's geometry.
        layer_type: Hugging Face's `model_type` of the decoder layers.
        tokens: proposed at once.
        dtype: of the weights.
        own: entries of this algorithm.
        extra: further entries; `target` and `target_architectures` say whom the draft is for.
    """
    rest = {k: v for k, v in extra.items() if k not in ("target", "target_architectures")}
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": tokens,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    sized = c.target_hidden_size if c.target_hidden_size != c.hidden_size else None
    return {
        "architectures": [architecture],
        "model_type": "speculators",
        "speculators_model_type": algorithm,
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": algorithm,
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {
                "name_or_path": extra.get("target"),
                "architectures": list(extra.get("target_architectures", ())),
            },
        },
        "transformer_layer_config": {
            "model_type": layer_type,
            **decoder_config(c),
            "attention_bias": c.attention_bias,
        },
        "draft_vocab_size": c.draft_vocab_size,
        "target_hidden_size": sized,
        **own,
        "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
        **rest,
    }
