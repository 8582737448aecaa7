"""The loop: prefill, propose, verify, accept, keep, advance, emit.

The algorithm, on tokens; `vispec.decoding.engine` puts text and images around it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vispec.decoding.accept import Walk, accept_at_once, accept_keyed, accept_stochastic
from vispec.decoding.cache import SlotCache
from vispec.decoding.sampling import Chooser, KeyedNoise, scaled
from vispec.decoding.stats import Stats
from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts.base import Draft, DraftSession
from vispec.targets.base import Prompt, Target

FinishReason = Literal["stop", "length", "context"]
AT_ONCE = 2**24
"""Logits of a pass that get their noise together; of more, only those on the walk do."""


@dataclass
class Job:
    """One request, as the loop sees it.

    Args:
        prompt: the target's inputs.
        chooser: processes logits and says whether to sample.
        limit: most new tokens.
        limit_reason: why the limit is what it is.
        finished: called once for every emitted token with `(token, drafted)`; True ends the
            request after that token.
        text: tokens that logits processors see before the answer; the prompt's own by default.
        draft_temperature: what the draft's logits are divided by where it samples.
    """

    prompt: Prompt
    chooser: Chooser
    limit: int
    finished: Callable[[int, bool], bool]
    limit_reason: FinishReason = "length"
    text: list[int] | None = None
    draft_temperature: float = 1.0
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stats: Stats = field(default_factory=Stats)

    def emit(self, tokens: Sequence[int], accepted: int) -> int:
        """Append tokens, the first `accepted` of them drafted, until the request ends.

        Returns:
            how many were appended.
        """
        for count, token in enumerate(tokens, 1):
            self.token_ids.append(token)
            if self.finished(token, count <= accepted):
                self.finish_reason = "stop"
            elif len(self.token_ids) >= self.limit:
                self.finish_reason = self.limit_reason
            if self.finish_reason:
                return count
        return len(tokens)

    def read_text(self, device: torch.device) -> Tensor | None:
        """What a logits processor sees before the next token."""
        if not self.chooser.reads_text:
            return None
        before = self.prompt.ids if self.text is None else self.text
        return torch.tensor(before + self.token_ids, device=device)


@torch.inference_mode()
def run(
    target: Target,
    draft: Draft | None,
    jobs: Iterable[Job],
    *,
    shape: TreeShape | SampledShape,
    slots: int,
    capacity: int,
) -> Iterator[list[Job]]:
    """Answer jobs, at most `slots` at the same time, yielding after every pass who moved.

    Args:
        target: the model whose text this is.
        draft: proposes; None is the plain loop, the same loop with trees that are only a root.
        jobs: in the order in which they take free slots.
        shape: a `TreeShape` is accepted by the keyed rule, a `SampledShape` by the stochastic one;
            a target that verifies chains only takes a chain as deep.
        slots: requests in a batch.
        capacity: positions a slot must hold for the longest job, its answer included.
    """
    if target.chains_only:
        shape = shape.as_chain()
    layers = draft.feature_layers(target) if draft is not None else ()
    slack = max(shape.size, shape.width * shape.depth if isinstance(shape, TreeShape) else 0)
    cache = target.new_cache(slots, capacity + slack)
    session = draft.session(target, slots, capacity + slack) if draft is not None else None
    waiting, active = deque(jobs), list[Job]()
    clock = time.perf_counter
    while waiting or active:
        moved = []
        while waiting and len(active) < slots:
            job = waiting.popleft()
            _prefill(target, session, cache, len(active), job, layers)
            moved.append(job)
            if job.finish_reason is None:
                active.append(job)
        if moved:
            yield moved
        if not active:
            continue

        begun = clock()
        cycle = _Cycle(target, active)
        ready = clock()
        if session is None:
            tree = Tree.root(cycle.roots)
        else:
            tree = session.propose(cycle.roots, shape, cycle.noise)
        cycle.shorten(tree)
        proposed = clock()
        seen = target.verify(tree, cache, layers=layers)
        verified = clock()
        paths, tokens = cycle.accept(tree, seen.logits)  # the cycle's one synchronisation
        for slot, (job, path, row) in enumerate(zip(active, paths, tokens, strict=True)):
            cache.keep(slot, path)
            job.stats.count(len(path) - 1, job.emit(row, len(path) - 1))
        moved = list(active)
        kept = _retire(active, cache, session)
        accepted = clock()
        if session is not None and kept:
            features = seen.features if len(kept) == len(moved) else seen.features[kept]
            session.advance([paths[i] for i in kept], [tokens[i] for i in kept], features)
        advanced = clock()
        for job in moved:
            job.stats.draft_s += proposed - ready + advanced - accepted
            job.stats.verify_s += verified - proposed
            job.stats.overhead_s += ready - begun + accepted - verified
        yield moved


class _Cycle:
    """The active requests' numbers as tensors, for one pass."""

    def __init__(self, target: Target, active: Sequence[Job]) -> None:
        device = target.device
        rows = [[job.token_ids[-1], job.chooser.seed, len(job.token_ids)] for job in active]
        self.roots, self.seed, self.position = torch.tensor(rows, device=device).unbind(1)
        self.choosers = [job.chooser for job in active]
        self.texts = [job.read_text(device) for job in active]
        samples = [chooser.sample for chooser in self.choosers]
        self.sample = torch.tensor(samples, device=device) if any(samples) else None
        heat = [job.draft_temperature for job in active]
        self.noise = KeyedNoise(self.seed, self.position, torch.tensor(heat, device=device))
        self._left = [job.limit - len(job.token_ids) for job in active]

    def accept(self, tree: Tree, logits: Tensor) -> tuple[list[list[int]], list[list[int]]]:
        """The accepted paths, and the target's tokens behind their nodes."""
        few = self.sample is None or logits.numel() <= AT_ONCE
        if tree.shape is None and few and all(chooser.scales for chooser in self.choosers):
            scores = scaled(self.choosers, logits)
            return accept_at_once(tree, scores, self.seed, self.position, self.sample)
        walk = Walk(logits, self.choosers, self.texts)
        if tree.shape is not None:
            return accept_stochastic(tree, walk, self.seed, self.position).to_lists()
        return accept_keyed(tree, walk, self.seed, self.position, self.sample).to_lists()

    def shorten(self, tree: Tree) -> None:
        """Keep nodes that no request can reach from lying beyond its last position.

        Their scores are never used, but some rotary embeddings change for every node of a pass
        once one of them lies beyond the context.
        """
        if min(self._left) <= tree.max_depth:
            last = torch.tensor(self._left, device=tree.depth.device)[:, None] - 1
            tree.depth = torch.minimum(tree.depth, last)


def _prefill(
    target: Target,
    session: DraftSession | None,
    cache: SlotCache,
    slot: int,
    job: Job,
    layers: Sequence[int],
) -> None:
    """Run a job's prompt and emit its first token."""
    clock = time.perf_counter
    begun = clock()
    prefill = target.prefill(job.prompt, cache, slot, layers)
    device = target.device
    root = torch.zeros(1, dtype=torch.long, device=device)
    walk = Walk(prefill.logits[:, None], [job.chooser], [job.read_text(device)])
    sample = torch.ones(1, dtype=torch.bool, device=device) if job.chooser.sample else None
    seed = torch.tensor([job.chooser.seed], device=device)
    _, tokens = accept_keyed(Tree.root(root), walk, seed, root, sample).to_lists()
    job.emit(tokens[0], 0)
    prefilled = clock()
    if session is not None and job.finish_reason is None:
        session.begin(slot, job.prompt, prefill, tokens[0][0])
    stats = job.stats
    stats.prompt_tokens, stats.new_tokens = len(job.prompt), len(job.token_ids)
    stats.vision_s = prefill.vision_s
    stats.prefill_s = prefilled - begun - prefill.vision_s
    stats.read_s = clock() - prefilled


def _retire(active: list[Job], cache: SlotCache, session: DraftSession | None) -> list[int]:
    """Drop finished jobs, the last one taking a freed slot each time.

    Returns:
        for every slot that is left, its index before.
    """
    kept = list(range(len(active)))
    slot = 0
    while slot < len(active):
        if active[slot].finish_reason is None:
            slot += 1
            continue
        last = len(active) - 1
        cache.move(last, slot)
        if session is not None:
            session.move(last, slot)
        active[slot], kept[slot] = active[last], kept[last]
        active.pop()
        kept.pop()
    return kept
