"""Writing drafts in the formats that engines load.

| format | who loads it |
|---|---|
| `vispec` | the published ViSpec code, NeMo AutoModel |
| `eagle` | the published EAGLE code, vLLM, SGLang |
| `eagle3` | the published EAGLE code, SGLang, vLLM |
| `dflash` | z-lab's code, SGLang |
| `dspark` | DeepSpec, vLLM |
| `speculators` | vLLM, speculators |
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from vispec.checkpoints import block, eagle3, vispec
from vispec.drafts.block import BlockNetwork
from vispec.drafts.eagle import EagleDraft
from vispec.drafts.eagle3 import Eagle3Draft
from vispec.errors import CheckpointError

FORMATS = ("vispec", "eagle", "eagle3", "dflash", "dspark", "speculators")


def export(
    draft: nn.Module,
    folder: str | os.PathLike[str],
    form: str,
    *,
    closest: bool = False,
    **extra: Any,
) -> list[str]:
    """Write a draft in a format of `FORMATS`.

    Args:
        draft: what to write.
        folder: is made where it does not exist.
        form: the format.
        closest: where the format cannot represent the draft, write what comes closest.
        extra: further configuration entries, such as `target`.

    Returns:
        one sentence for everything that was left out.

    Raises:
        CheckpointError: for a draft of another kind, or one that the format cannot represent.
    """
    if form not in FORMATS:
        raise CheckpointError(
            _name(draft), f"cannot be exported as '{form}'", fix=f"Known are: {', '.join(FORMATS)}."
        )
    if form not in possible(draft):
        raise CheckpointError(
            _name(draft),
            f"is {_kind(draft)}, which the format '{form}' cannot hold",
            fix=f"It can be exported as: {', '.join(possible(draft)) or 'nothing'}.",
        )
    if isinstance(draft, EagleDraft):
        return _eagle(draft, folder, form, closest, extra)
    if isinstance(draft, BlockNetwork):
        return _block(draft, folder, form, closest, extra)
    assert isinstance(draft, Eagle3Draft)
    eagle3.write(draft, folder, form, **extra)
    return []


def possible(draft: nn.Module) -> tuple[str, ...]:
    """The formats that drafts of a kind can be written in, some of them only in part."""
    if isinstance(draft, EagleDraft):
        return ("vispec", "eagle") if draft.adapter is not None else ("eagle",)
    if isinstance(draft, Eagle3Draft):
        return "eagle3", "speculators"
    return ("dflash", "dspark", "speculators") if isinstance(draft, BlockNetwork) else ()


def write(draft: nn.Module, folder: str | os.PathLike[str], **extra: Any) -> str:
    """Write a draft in the format of its own kind, which holds all of it.

    Args:
        draft: what to write.
        folder: is made where it does not exist.
        extra: further configuration entries, such as `target`.

    Returns:
        the format.

    Raises:
        CheckpointError: for what is no draft of a known kind.
    """
    form = own_format(draft)
    if isinstance(draft, EagleDraft):
        vispec.write(draft, folder, **extra)
    elif isinstance(draft, BlockNetwork):
        block.write(draft, folder, form, **extra)
    else:
        assert isinstance(draft, Eagle3Draft)
        eagle3.write(draft, folder, form, **extra)
    return form


def own_format(draft: nn.Module) -> str:
    """The format that holds all of a draft.

    Raises:
        CheckpointError: for what is no draft of a known kind.
    """
    if isinstance(draft, EagleDraft):
        return "vispec" if draft.adapter is not None else "eagle"
    if isinstance(draft, Eagle3Draft):
        return "speculators" if eagle3.unsaid(draft.config) else "eagle3"
    if isinstance(draft, BlockNetwork):
        heads = draft.markov_head is not None or draft.confidence_head is not None
        return "speculators" if draft.token_map is not None else "dspark" if heads else "dflash"
    raise CheckpointError(_name(draft), f"is {_kind(draft)}, which is no draft of a known kind")


def _eagle(
    draft: EagleDraft, folder: Any, form: str, closest: bool, extra: dict[str, Any]
) -> list[str]:
    c = draft.config
    unsaid = {
        "a norm in its first layer": c.first_norm,
        "a norm behind its last": c.final_norm,
        "a bias behind its attention": c.output_bias,
    }
    words = [word for word, has in unsaid.items() if has]
    if form == "eagle" and words:
        raise CheckpointError(
            draft.name, f"has {' and '.join(words)}, for which the EAGLE format has no word"
        )
    if form == "vispec" or draft.adapter is None:
        vispec.write(draft, folder, **extra)
        return []
    if not closest:
        raise CheckpointError(
            draft.name,
            "has a vision adapter, for which the EAGLE format has no word",
            fix="Export it with --format vispec, or with --closest leave the adapter out: images"
            " are then read token by token, and far less is accepted of answers about them.",
        )
    bare = EagleDraft(c, None, draft.embed_tokens, draft.name).to(draft.fc.weight.device)
    own = {k: v for k, v in draft.state_dict().items() if k in bare.state_dict()}
    bare.load_state_dict(own)
    said = ["the vision adapter and the global image vector are left out"]
    if draft.img_fc is not None:
        # Without an image the global vector is zero: what is left of `img_fc` acts on the feature,
        # and so does `fc` behind it. One matrix does what both did.
        d, wide = c.hidden_size, torch.float64
        fold = draft.fc.weight[:, d:].to(wide)
        bare.fc.weight.data[:, d:] = fold @ draft.img_fc.weight[:, :d].to(wide)
        if draft.img_fc.bias is not None:
            bare.fc.bias.data += (fold @ draft.img_fc.bias.to(wide)).to(bare.fc.bias)
        said.append("what it did to text without an image is kept, folded into fc")
    vispec.write(bare.to(draft.dtype), folder, **extra)
    return said


def _block(
    network: BlockNetwork, folder: Any, form: str, closest: bool, extra: dict[str, Any]
) -> list[str]:
    heads = [name for name in ("markov_head", "confidence_head") if getattr(network, name)]
    if form == "dspark" and not heads:
        raise CheckpointError(
            network.name, "has none of DSpark's heads", fix="Export it with --format dflash."
        )
    if form == "dflash" and heads:
        if not closest:
            raise CheckpointError(
                network.name,
                f"has a {' and a '.join(heads)}, for which DFlash's format has no word",
                fix="Export it with --format dspark, or leave them out with --closest.",
            )
        bare = BlockNetwork(
            type(network.config)(
                **{
                    **vars(network.config),
                    "markov_rank": 0,
                    "confidence": None,
                    "sample_from_anchor": False,
                }
            ),
            network.embed_tokens,
            network.name,
        )
        own = {k: v for k, v in network.state_dict().items() if k in bare.state_dict()}
        bare.load_state_dict(own)
        block.write(bare.to(network.fc.weight.dtype), folder, **extra)
        return [f"the {' and the '.join(heads)} are left out"]
    block.write(network, folder, form, **extra)
    return []


def _name(draft: nn.Module) -> str:
    return str(getattr(draft, "name", type(draft).__name__))


def _kind(draft: nn.Module) -> str:
    if isinstance(draft, EagleDraft):
        return "a ViSpec draft" if draft.adapter is not None else "an EAGLE draft"
    if isinstance(draft, Eagle3Draft):
        return "an EAGLE-3 draft"
    return "a block draft" if isinstance(draft, BlockNetwork) else f"a {type(draft).__name__}"
