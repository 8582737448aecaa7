"""Training drafts of several targets around one adapter that they share.

Every target has a draft, a stage and samples of its own; the core of their adapters is one module.
They take steps in turn, so the core learns from all.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vispec.adapters import UnifiedAdapter
from vispec.drafts.sequential import SequentialDraft
from vispec.errors import SettingsError
from vispec.training.draft import Batches, Stage, split
from vispec.training.features import Sample

Turn = tuple[int, list[Sample]]
"""Whose samples these are."""


def share(drafts: Sequence[SequentialDraft]) -> None:
    """Let drafts have one core: the first one's.

    Raises:
        SettingsError: for a draft without a unified adapter, or with another core.
    """
    adapters = []
    for draft in drafts:
        if not isinstance(draft.adapter, UnifiedAdapter):
            raise SettingsError(f"draft '{draft.name}' has no unified adapter to share")
        adapters.append(draft.adapter)
    for adapter in adapters[1:]:
        if adapter.settings != adapters[0].settings:
            raise SettingsError(
                f"cores differ: {adapters[0].settings} and {adapter.settings}",
                "Give them the same width and parts.",
            )
        adapter.core = adapters[0].core


class SharedStages(nn.Module):
    """The stages of several targets as one module to train."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, turn: Turn) -> tuple[Tensor, dict[str, float]]:
        """The loss of whose turn it is."""
        whose, samples = turn
        loss, numbers = self.stages[whose](samples)
        return loss, {f"{name}_of_{whose}": value for name, value in numbers.items()}


class InTurn:
    """Batches of several targets by turns; each depends on its step alone."""

    def __init__(self, batches: Sequence[Batches]) -> None:
        self.batches = batches

    def __call__(self, step: int) -> tuple[int, list[int]]:
        """Whose turn it is, and places of its samples."""
        round_, whose = divmod(step, len(self.batches))
        return whose, self.batches[whose](round_)

    def load(self, turn: tuple[int, list[int]]) -> list[Turn]:
        """See `Batches.load`."""
        whose, places = turn
        return [(whose, samples) for samples in self.batches[whose].load(places)]


def split_turn(turn: tuple[int, list[int]], parts: int) -> list[tuple[int, list[int]]]:
    """See `vispec.training.draft.split`."""
    return [(turn[0], part) for part in split(turn[1], parts)]


def weigh_turn(turn: Turn) -> int:
    """See `Stage.weight`."""
    return Stage.weight(turn[1])
