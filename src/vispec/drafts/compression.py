"""Smaller forms of a trained draft: matrices of whole numbers, or of low rank.

A draft of either form is smaller on disk and in memory. One of low rank also computes less; one of
int8 more, since torch multiplies the numbers after turning them into `x`'s kind. Neither can change
what the target says; what each costs in acceptance and time has to be measured.

Shapes: `o` outputs, `i` inputs, `r` rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispec.errors import SettingsError

FORMS = ("int8", "low_rank")
Module = TypeVar("Module", bound=nn.Module)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[…, n]` as int8, the largest number of each as 127, and their scales `[…, 1]`."""
    scale = rows.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (rows / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A matrix `[o, i]` of int8, and one scale for each output."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=torch.int8), False)
        self.scale = nn.Parameter(torch.zeros(outputs, 1), False)
        self.bias = nn.Parameter(torch.zeros(outputs), False) if bias else None

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """Rounded to nearest, the largest number of each output to 127."""
        made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.weight.data, scale = rounded(linear.weight.detach().float())
        made.scale.data = scale.to(linear.weight.dtype)
        if linear.bias is not None and made.bias is not None:
            made.bias.data = linear.bias.detach().clone()
        return made

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)) * self.scale[:, 0].to(x.dtype) + (
            0 if self.bias is None else self.bias
        )


class LowRankLinear(nn.Module):
    """A matrix `[o, i]` as the product of `[o, r]` and `[r, i]`."""

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=bias)

    @classmethod
    def of(cls, linear: nn.Linear, rank: int) -> LowRankLinear:
        """The closest of that rank (a truncated singular value decomposition)."""
        made = cls(linear.in_features, linear.out_features, rank, linear.bias is not None)
        u, s, v = torch.linalg.svd(linear.weight.detach().double(), full_matrices=False)
        root = s[:rank].sqrt()
        made.up.weight.data = (u[:, :rank] * root).to(linear.weight.dtype)
        made.down.weight.data = (root[:, None] * v[:rank]).to(linear.weight.dtype)
        if linear.bias is not None:
            made.up.bias.data = linear.bias.detach().clone()
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def compress(draft: Module, form: str, rank: int = 0) -> Module:
    """A smaller copy of a draft; see `FORMS`.

    Args:
        rank: of `low_rank`; matrices for which that is no saving stay as they are.

    Raises:
        SettingsError: for a form that there is not, a rank that is none, or one that is no saving
            for any matrix.
    """
    smaller = copy.deepcopy(draft)
    reshape(smaller, {"form": form, **({"rank": rank} if form == "low_rank" else {})}, True)
    if not any(isinstance(part, Int8Linear | LowRankLinear) for part in smaller.modules()):
        raise SettingsError(
            f"no matrix of the draft is smaller at rank {rank}", "Give a lower one."
        )
    return smaller.requires_grad_(False)


def reshape(network: nn.Module, settings: Mapping[str, Any], fill: bool) -> None:
    """Put smaller matrices into a network.

    Args:
        settings: `form`, and the `rank` of `low_rank`; what `compression_of` says.
        fill: with what the matrices hold; else they are only of the right shape, to be loaded.
    """
    form, rank = settings.get("form"), settings.get("rank", 0)
    if form not in FORMS:
        raise SettingsError(
            f"there is no compressed form '{form}'", f"Known are {', '.join(FORMS)}."
        )
    if form == "low_rank" and (not isinstance(rank, int) or rank < 1):
        raise SettingsError(f"rank is {rank!r}", "It must be a whole number from 1 on.")
    for name, child in list(network.named_children()):
        if isinstance(child, nn.TransformerEncoderLayer | nn.MultiheadAttention):
            continue  # torch reads their weights itself
        if not isinstance(child, nn.Linear):
            reshape(child, settings, fill)
            continue
        outputs, inputs, bias = child.out_features, child.in_features, child.bias is not None
        if form == "int8":
            made: nn.Module = Int8Linear.of(child) if fill else Int8Linear(inputs, outputs, bias)
        elif rank * (inputs + outputs) >= inputs * outputs:
            continue
        elif fill:
            made = LowRankLinear.of(child, rank)
        else:
            made = LowRankLinear(inputs, outputs, rank, bias)
        setattr(network, name, made)
    network.compression = dict(settings)  # type: ignore[assignment]


def compression_of(network: nn.Module) -> dict[str, Any] | None:
    """What a network was compressed with; None if it was not."""
    found: dict[str, Any] | None = getattr(network, "compression", None)
    return found
