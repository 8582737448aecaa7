"""Growing a tree level by level from a draft that continues one token at a time.

Shapes: `b` requests, `w` nodes of a level, `V'` draft vocabulary, `V` the target's. Where the
draft knows fewer tokens than the target, `token_map [V']` tells which of the target's they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vispec.decoding.tree import SampledShape, Tree, TreeShape
from vispec.drafts.base import DraftNoise

Expand = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(token [b, w], origin [b, w], seen [b, w, m]) -> logits [b, w, V']`, of the target's tokens.

`origin` is each node's parent among the nodes of the previous level (0 at the first level, whose
parent is the root); `seen` says which of the `m` nodes expanded so far, itself included, each node
attends to.
"""


def grow(
    root: Tensor,
    logits: Tensor,
    expand: Expand,
    shape: TreeShape | SampledShape,
    noise: DraftNoise | None,
    token_map: Tensor | None = None,
    vocabulary: int = 0,
) -> Tree:
    """A tree of either shape; arguments as of `grow_dynamic` and `grow_sampled`."""
    if isinstance(shape, TreeShape):
        return grow_dynamic(root, logits, expand, shape, token_map)
    if noise is None:
        raise ValueError("sampled trees need the noise to draw them with")
    return grow_sampled(root, logits, expand, shape, noise, token_map, vocabulary)


def grow_dynamic(
    root: Tensor,
    logits: Tensor,
    expand: Expand,
    shape: TreeShape,
    token_map: Tensor | None = None,
) -> Tree:
    """EAGLE-2's dynamic tree (arXiv 2406.16858): expand by cumulative probability, then re-rank.

    Args:
        root: `[b]` root tokens.
        logits: `[b, V']` of the draft behind the root.
        expand: runs the draft on a level.
        shape: the budget.
        token_map: of a draft with fewer tokens.

    Returns:
        A tree of at most `shape.size` nodes, ordered by level and then by rank.
    """
    b = root.shape[0]
    device = root.device
    width = min(shape.width, logits.shape[-1])
    log_p, token = logits.float().log_softmax(-1).topk(width)
    token = _known(token, token_map)
    # Candidates of all levels, in the order they arise; `parent` counts candidates, -1 the root.
    tokens, scores = [token], [log_p]
    parents = [torch.full_like(token, -1)]
    frontier = torch.arange(width, device=device).expand(b, -1)  # candidates to expand
    score, origin = log_p, torch.zeros_like(token)
    seen = torch.empty(b, width, 0, dtype=torch.bool, device=device)
    itself = torch.eye(width, dtype=torch.bool, device=device).expand(b, -1, -1)
    made = width
    for _ in range(shape.depth - 1):
        if seen.shape[2]:
            seen = seen.gather(1, origin[..., None].expand(-1, -1, seen.shape[2]))
        seen = torch.cat([seen, itself], 2)
        log_p, token_next = expand(token, origin, seen).float().log_softmax(-1).topk(width)
        total = (score[..., None] + log_p).flatten(1)  # [b, w * w]
        candidates = _known(token_next, token_map).flatten(1)
        tokens.append(candidates)
        scores.append(total)
        parents.append(frontier.repeat_interleave(width, 1))
        score, best = total.topk(width)
        origin = best // width
        token = candidates.gather(1, best)
        frontier = made + best
        made += width * width
    # A child never outscores its parent and arises after it, so the best candidates of a stable
    # sort are a tree, and so are they in order of arising.
    score, kept = torch.cat(scores, 1).sort(descending=True, stable=True)
    size = min(shape.size - 1, made)
    kept, order = kept[:, :size].sort()
    parent = torch.cat(parents, 1).gather(1, kept)
    parent = torch.where(parent < 0, 0, torch.searchsorted(kept, parent) + 1)
    depth_of = torch.cat(
        [torch.full((p.shape[1],), level + 1, device=device) for level, p in enumerate(parents)]
    )
    zero = torch.zeros(b, 1, dtype=torch.long, device=device)
    return Tree(
        token=torch.cat([root[:, None], torch.cat(tokens, 1).gather(1, kept)], 1),
        parent=torch.cat([zero - 1, parent], 1),
        depth=torch.cat([zero, depth_of[kept]], 1),
        max_depth=shape.depth,
        logprob=torch.cat([zero.float(), score.gather(1, order)], 1),
    )


def grow_sampled(
    root: Tensor,
    logits: Tensor,
    expand: Expand,
    shape: SampledShape,
    noise: DraftNoise,
    token_map: Tensor | None = None,
    vocabulary: int = 0,
) -> Tree:
    """A tree of fixed shape, each node's children drawn without replacement from the draft.

    The largest of log q plus Gumbel noise, in order, are draws without replacement (Kool et al.,
    arXiv 1903.06059).

    Args:
        root: `[b]` root tokens.
        logits: `[b, V']` of the draft behind the root.
        expand: runs the draft on a level.
        shape: children per node of every level.
        noise: what they are drawn with.
        token_map: of a draft with fewer tokens.
        vocabulary: `V`, with a `token_map`.
    """
    b, device = root.shape[0], root.device
    own = logits.shape[-1]
    logits = logits[:, None]
    tokens, parents, depths, scores = [root[:, None]], [], [], []
    proposals = []
    score = torch.zeros(b, 1, device=device)
    seen = torch.empty(b, 1, 0, dtype=torch.bool, device=device)
    for level, branching in enumerate(shape.branching):
        width = logits.shape[1]
        log_q = (logits.double() / noise.temperature.view(-1, 1, 1)).log_softmax(-1)
        proposals.append(_spread(log_q.exp(), token_map, vocabulary))
        count = min(branching, own)
        drawn = (log_q + noise.gumbel(shape.level_starts[level], width, own)).topk(count).indices
        log_p = log_q.gather(2, drawn)
        # Where the draft leaves fewer tokens possible than children are wanted, a node is nothing.
        token = torch.where(log_p.isfinite(), _known(drawn, token_map), -1)
        if count < branching:
            missing = token.new_full((b, width, branching - count), -1)
            token = torch.cat([token, missing], 2)
            log_p = torch.cat([log_p, torch.zeros_like(missing, dtype=log_p.dtype)], 2)
        score = (score[..., None] + log_p.float()).flatten(1)
        token = token.flatten(1)
        start = shape.level_starts[level]
        parent = torch.arange(start, start + width, device=device)
        parents.append(parent.repeat_interleave(branching))
        depths.append(torch.full((width * branching,), level + 1, device=device))
        tokens.append(token)
        scores.append(score)
        if level + 1 < shape.depth:
            origin = torch.arange(width, device=device).repeat_interleave(branching).expand(b, -1)
            seen = seen.repeat_interleave(branching, 1)
            itself = torch.eye(width * branching, dtype=torch.bool, device=device)
            seen = torch.cat([seen, itself.expand(b, -1, -1)], 2)
            logits = expand(token.clamp(min=0), origin, seen)
    one = torch.zeros(1, dtype=torch.long, device=device)
    return Tree(
        token=torch.cat(tokens, 1),
        parent=torch.cat([one - 1, *parents]).expand(b, -1),
        depth=torch.cat([one, *depths]).expand(b, -1),
        max_depth=shape.depth,
        logprob=torch.cat([torch.zeros(b, 1, device=device), *scores], 1),
        proposal=torch.cat(proposals, 1),
        shape=shape,
    )


def _known(token: Tensor, token_map: Tensor | None) -> Tensor:
    """The target's tokens for the draft's."""
    return token if token_map is None else token_map[token]


def _spread(probability: Tensor, token_map: Tensor | None, vocabulary: int) -> Tensor:
    """A distribution `[…, V']` over the target's tokens `[…, V]`."""
    if token_map is None:
        return probability
    whole = probability.new_zeros(*probability.shape[:-1], vocabulary)
    return whole.index_copy_(-1, token_map, probability)
