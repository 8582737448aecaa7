"""What an answer cost, and how much of it the draft contributed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stats:
    """Counts and times of one request; times are seconds of wall clock.

    In a batch, a pass serves several requests and each of them is charged its whole time.

    Attributes:
        prompt_tokens: positions of the prompt, image tokens included.
        new_tokens: tokens of the answer, an end-of-sequence token included.
        target_passes: verification passes; the prefill, which gives the first token, is not one.
        accepted_tokens: tokens of the answer that the draft had proposed.
        accepted_by_depth: how many passes accepted a draft token at depth 1, 2, …
        vision_s: until the decoder first ran: the vision tower and projector.
        prefill_s: the prompt in the decoder, and the first token.
        read_s: the draft reading the prompt.
        draft_s: proposing and advancing.
        verify_s: the target's passes over trees.
        overhead_s: everything else in the loop: acceptance, caches, text.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    target_passes: int = 0
    accepted_tokens: int = 0
    accepted_by_depth: list[int] = field(default_factory=list)
    vision_s: float = 0.0
    prefill_s: float = 0.0
    read_s: float = 0.0
    draft_s: float = 0.0
    verify_s: float = 0.0
    overhead_s: float = 0.0

    @property
    def total_s(self) -> float:
        prompt = self.vision_s + self.prefill_s + self.read_s
        return prompt + self.draft_s + self.verify_s + self.overhead_s

    @property
    def tokens_per_s(self) -> float:
        """New tokens over the whole time, vision and prefill included."""
        return self.new_tokens / self.total_s if self.total_s else 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification pass, the target's own (bonus) token included."""
        return (self.new_tokens - 1) / self.target_passes if self.target_passes else 0.0

    @property
    def accepted_per_pass(self) -> float:
        """Draft tokens per verification pass, without the bonus."""
        return self.accepted_tokens / self.target_passes if self.target_passes else 0.0

    def count(self, accepted: int, emitted: int) -> None:
        """Take in one pass: `accepted` draft tokens on the path, `emitted` tokens of the answer."""
        self.target_passes += 1
        self.new_tokens += emitted
        self.accepted_tokens += min(accepted, emitted)
        depths = self.accepted_by_depth
        depths += [0] * (accepted - len(depths))
        for depth in range(min(accepted, emitted)):
            depths[depth] += 1

    def as_dict(self) -> dict[str, Any]:
        """Everything, derived numbers included, ready for JSON."""
        derived = ("total_s", "tokens_per_s", "acceptance_length", "accepted_per_pass")
        return dict(vars(self)) | {name: getattr(self, name) for name in derived}


class Watch:
    """Warns once of a draft that only costs time.

    Args:
        draft: has a `name`, and may have `trained_for`, the target that its checkpoint states.
        target: has a `name`.
    """

    PASSES = 64
    """Fewer say nothing."""
    LEAST = 0.1
    """Accepted tokens a pass, below which a draft is worth a warning."""

    def __init__(self, draft: Any, target: Any) -> None:
        self.draft, self.target = draft, target
        self._passes = self._accepted = 0
        self._warned = False

    def add(self, stats: Iterable[Stats]) -> None:
        """Take in what finished answers cost."""
        for one in stats:
            self._passes += one.target_passes
            self._accepted += one.accepted_tokens
        if self._warned or self._passes < self.PASSES:
            return
        if self._accepted < self.LEAST * self._passes:
            self._warned = True
            trained_for = getattr(self.draft, "trained_for", None)
            stated = f"; its checkpoint says '{trained_for}'" if trained_for else ""
            warnings.warn(
                f"of draft '{self.draft.name}' {self._accepted} tokens were accepted in"
                f" {self._passes} passes of '{self.target.name}': the text is right, but no sooner"
                " there. The draft may be of another model, of this one before fine-tuning, or of"
                f" text alone{stated}",
                stacklevel=2,
            )
