"""Drafts before their training: new ones in the geometry of their target's decoder layers, and
those that training goes on with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vispec.adapters import build, settings_of
from vispec.checkpoints.registry import read
from vispec.drafts import Eagle3Config, Eagle3Draft, EagleConfig, EagleDraft
from vispec.drafts.compression import compression_of
from vispec.drafts.medusa import MedusaConfig, MedusaDraft
from vispec.errors import SettingsError
from vispec.loading_drafts import share_embedding
from vispec.targets import Target
from vispec.training.distill import Answers
from vispec.training.recipe import HELDOUT, DraftRecipe, Recipe

NETWORKS = {"eagle": EagleDraft, "eagle3": Eagle3Draft, "medusa": MedusaDraft}


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


def check_draft(target: Target, wanted: DraftRecipe, init: str | None = None) -> None:
    """Raise `VispecError` if the target cannot have a draft, before it answers anything."""
    if init is not None:
        draft = started(target, wanted, init)
        draft.check(target)
        if compression_of(draft) is not None:
            raise SettingsError(
                f"'{init}' is a compressed draft, which learns no more",
                "Begin with the draft that it was made of.",
            )
    elif wanted.vocabulary > target.vocab_size:
        raise SettingsError(
            f"the draft has a vocabulary of {wanted.vocabulary} tokens, and {target.name} of"
            f" {target.vocab_size}",
            "Give fewer, or none for all.",
        )
    else:
        with torch.device("meta"):
            draft = new_draft(target, wanted)
    depth = target.text_config.num_hidden_layers
    if missing := [layer for layer in draft.feature_layers(target) if layer > depth]:
        raise SettingsError(
            f"aux_layers has {missing[0]}, and {target.name} has {depth} layers",
            f"What they read and what the last one gives is counted from 0 to {depth}.",
        )


def refuse_unfit(recipe: Recipe, init: str) -> None:
    """Raise `SettingsError` if a stage asks for what the draft to begin with cannot do."""
    own = described(opened(recipe.draft, init))
    if own["kind"] not in NETWORKS:
        raise SettingsError(
            f"'{init}' is a draft that no recipe trains ({own['kind']})",
            f"Begin with one of the kinds {', '.join(NETWORKS)}.",
        )
    draft = DraftRecipe(**{name: value for name, value in own.items() if value})
    for stage in recipe.stages:
        stage.fits(draft)


def begin(target: Target, recipe: Recipe, answers: Mapping[str, Answers], init: str | None) -> Any:
    """The draft before its training, on the target's device in float32."""
    torch.manual_seed(recipe.seed)
    wanted, token_map = recipe.draft, None
    if init is not None:
        draft = started(target, wanted, init)
        share_embedding(draft, target)
    else:
        if wanted.vocabulary:
            token_map = learnt_tokens(answers, wanted.vocabulary, target)
        draft = new_draft(target, wanted, seed=recipe.seed, token_map=token_map)
    return draft.to(device=target.device, dtype=torch.float32).requires_grad_(True).train()


def started(target: Target, wanted: DraftRecipe, init: str) -> Any:
    """The draft to begin with, beside the target; see `opened`."""
    return opened(wanted, init).to(device=target.device, dtype=target.dtype)


def opened(wanted: DraftRecipe, init: str) -> Any:
    """The draft to begin with; one without an adapter takes the recipe's, as ViSpec's EAGLE does.

    Raises:
        SettingsError: if it is another than the recipe describes.
    """
    draft: Any = read(init)
    refuse_another(draft, wanted, init)
    if wanted.adapter is not None and draft.adapter is None:
        draft.take(build(wanted.adapter, draft.width), bias=draft.config.fc_bias)
    return draft


def learnt_tokens(answers: Mapping[str, Answers], count: int, target: Target) -> Tensor:
    """The most frequent tokens of the answers, those that drafts are judged by left out."""
    told = [found for name, found in answers.items() if name != HELDOUT]
    said = (answer.token_ids for found in told for answer in found.values())
    return frequent(said, count, target.vocab_size)


def refuse_another(draft: Any, wanted: DraftRecipe, init: str) -> None:
    """Raise if a draft to begin with is not what the recipe describes, where it describes one."""
    if wanted == DraftRecipe():
        return
    meant = {name: getattr(wanted, name) for name in ("kind", "layers", "vocabulary")}
    if wanted.heads is not None:
        meant["heads"] = wanted.heads
    if wanted.aux_layers is not None or wanted.kind == "eagle":
        meant["aux_layers"] = list(wanted.aux_layers or ())
    own = described(draft)
    if own.get("adapter") is not None:
        meant["adapter"] = None
        if wanted.adapter is not None:
            with torch.device("meta"):
                meant["adapter"] = settings_of(build(wanted.adapter, draft.width))
    # As a file states them.
    own, meant = json.loads(json.dumps([own, meant]))
    other = [name for name, value in meant.items() if own.get(name) != value]
    if other:
        said = "; ".join(f"its {name} is {own.get(name)!r}, not {meant[name]!r}" for name in other)
        raise SettingsError(
            f"'{init}' is another draft than the recipe describes: {said}",
            "Leave [draft] out of the recipe.",
        )


def described(draft: Any) -> dict[str, Any]:
    """A draft in a recipe's words."""
    kind = next((kind for kind, made in NETWORKS.items() if isinstance(draft, made)), None)
    if kind is None:
        return {"kind": type(draft).__name__}
    c = draft.config
    if kind == "medusa":
        return {"kind": kind, "layers": c.layers, "heads": c.heads, "vocabulary": 0}
    known = getattr(c, "draft_vocab_size", c.vocab_size)
    return {
        "kind": kind,
        "layers": c.num_hidden_layers,
        "vocabulary": 0 if known == c.vocab_size else known,
        "aux_layers": list(c.aux_layers or ()),
        "adapter": None if draft.adapter is None else settings_of(draft.adapter),
    }
