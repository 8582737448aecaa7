"""Untrained drafts, in the geometry of their target's decoder layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vispec.adapters import build
from vispec.drafts import Eagle3Config, Eagle3Draft, EagleConfig, EagleDraft
from vispec.drafts.medusa import MedusaConfig, MedusaDraft
from vispec.targets import Target
from vispec.training.recipe import DraftRecipe


def new_draft(
    target: Target, wanted: DraftRecipe, *, seed: int = 0, token_map: Tensor | None = None
) -> nn.Module:
    """A draft of the kind that a recipe wants.

    Args:
        seed: of its first weights.
        token_map: the target's tokens that a reduced vocabulary holds; see `frequent`.
    """
    torch.manual_seed(seed)
    c, d = target.text_config, target.hidden_size
    if wanted.kind == "medusa":
        return MedusaDraft(MedusaConfig(d, target.vocab_size, wanted.heads or 4, wanted.layers))
    adapter = None if wanted.adapter is None else build(wanted.adapter, d)
    heads = c.num_attention_heads
    geometry = {
        "hidden_size": d,
        "intermediate_size": c.intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(c, "num_key_value_heads", None) or heads,
        "head_dim": getattr(c, "head_dim", None) or 0,
        "vocab_size": target.vocab_size,
        "num_hidden_layers": wanted.layers,
        "rms_norm_eps": getattr(c, "rms_norm_eps", 1e-6),
        "max_position_embeddings": target.context_length,
        "rope_theta": rotary_base(c),
    }
    biased = any(name.endswith("q_proj.bias") for name, _ in target.decoder.named_parameters())
    layers = None if wanted.aux_layers is None else tuple(wanted.aux_layers)
    if wanted.kind == "eagle3":
        size = target.vocab_size if token_map is None else len(token_map)
        config = Eagle3Config(
            **geometry, draft_vocab_size=size, aux_layers=layers, attention_bias=biased
        )
        return Eagle3Draft(config, token_map, adapter=adapter)
    eagle = EagleConfig(**geometry, qkv_bias=biased, fc_bias=False, aux_layers=layers or ())
    return EagleDraft(eagle, adapter)


def rotary_base(config: Any) -> float:
    """The base of a decoder's rotary angles; where its kinds of layers differ, of those that see
    everything."""
    stated = getattr(config, "rope_parameters", None) or {}
    stated = stated.get("full_attention", stated)
    return float(stated.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)


def frequent(answers: Iterable[Iterable[int]], count: int, vocabulary: int) -> Tensor:
    """The tokens that answers hold most often, ascending; `[count]`."""
    seen = Counter(token for answer in answers for token in answer)
    best = [token for token, _ in seen.most_common(count)]
    best += [token for token in range(vocabulary) if token not in seen][: count - len(best)]
    return torch.tensor(sorted(best))
