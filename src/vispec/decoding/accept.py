"""Which nodes of a tree the target would have said itself, in two lossless forms.

*Keyed*: the target's own token at a node is fixed before looking at the children (its argmax, or a
sample drawn with noise keyed by request seed and output position); the walk goes on while a child
carries that token. The text is the plain loop's own, whatever was proposed. Where logits are at
most divided by a temperature (`accept_at_once`), the tokens of all nodes are chosen together and
the walk is the host's.

*Stochastic* (Leviathan et al., arXiv 2211.17192; without replacement: Jeon et al., arXiv
2402.14160): a child drawn from q is accepted with probability min(1, p/q), a rejected one leaves
norm(max(p - q, 0)) for the next. The text has the target's distribution.

Else both walk from the root, one level a step and every request at once. Only the nodes on the walk
are processed, each after the tokens that truly stand before it and exactly once, so even a logits
processor that keeps state sees what it would see in a plain loop.

Shapes: `b` requests, `n` nodes, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vispec.decoding.sampling import Chooser, gumbel, process_rows, uniform
from vispec.decoding.tree import Tree

Scores = Callable[[Tensor, list[Tensor], Tensor], Tensor]
"""`(node [b], tokens walked so far [b] each, alive [b]) -> processed logits [b, V]`."""


@dataclass
class Step:
    """What one verification pass yields; after the call on the device, then on the host.

    Attributes:
        path: `[b, d + 1]` accepted nodes, the root first, -1 behind the last.
        token: `[b, d + 1]` tokens behind each of those nodes (the last is the target's own, the
            bonus), -1 behind the last.
    """

    path: Tensor
    token: Tensor

    def to_lists(self) -> tuple[list[list[int]], list[list[int]]]:
        """`(paths, tokens)` without padding; the cycle's one synchronisation with the device."""
        path, token = torch.stack([self.path, self.token]).tolist()
        return (
            [[node for node in row if node >= 0] for row in path],
            [[t for t in row if t >= 0] for row in token],
        )


class Walk:
    """Scores along a walk: gathers a node's logits and applies each request's processors.

    Args:
        logits: `[b, n, V]` of the target at every node.
        choosers: one a request.
        texts: `[t]` tokens before the root of each request and the root itself; needed only for
            requests whose processors read the text.
    """

    def __init__(
        self, logits: Tensor, choosers: Sequence[Chooser], texts: Sequence[Tensor | None]
    ) -> None:
        self.logits, self.choosers, self.texts = logits, choosers, texts
        self._rows = torch.arange(logits.shape[0], device=logits.device)
        self._reads_text = any(chooser.reads_text for chooser in choosers)

    def __call__(self, node: Tensor, walked: list[Tensor], alive: Tensor) -> Tensor:
        rows = self.logits[self._rows, node]
        if not self._reads_text:
            return process_rows(self.choosers, rows, [None] * len(self.choosers))
        texts: list[Tensor | None] = []
        for row, (chooser, text) in enumerate(zip(self.choosers, self.texts, strict=True)):
            if chooser.reads_text and text is not None and bool(alive[row]):
                texts.append(torch.cat([text, *(token[row : row + 1] for token in walked)]))
            else:
                texts.append(None)
        return process_rows(self.choosers, rows, texts)


def accept_at_once(
    tree: Tree, scores: Tensor, seed: Tensor, position: Tensor, sample: Tensor | None
) -> tuple[list[list[int]], list[list[int]]]:
    """What `accept_keyed` accepts, from the scores of all nodes: few operations, more memory.

    Args:
        tree: the proposal.
        scores: `[b, n, V]` processed logits of the target at every node.
        seed, position, sample: as there.

    Returns:
        The accepted paths, the root first, and the target's token behind each node of them.
    """
    own_tokens = scores.argmax(-1)
    if sample is not None:
        device = scores.device
        places = position[:, None] + torch.arange(tree.max_depth + 1, device=device)
        column = torch.arange(scores.shape[-1], device=device)
        noise = gumbel(seed[:, None, None], places[..., None], column)
        rows = torch.arange(len(seed), device=device)[:, None]
        drawn = (scores.double() + noise[rows, tree.depth]).argmax(-1)
        own_tokens = torch.where(sample[:, None], drawn, own_tokens)
    numbers = torch.stack([own_tokens, tree.parent, tree.token])
    paths, tokens = [], []
    for own, parents, proposed in zip(*numbers.tolist(), strict=True):
        children: dict[tuple[int, int], int] = {}
        for node, place in enumerate(zip(parents, proposed, strict=True)):
            children.setdefault(place, node)
        path = [0]
        while (child := children.get((path[-1], own[path[-1]]))) is not None:
            path.append(child)
        paths.append(path)
        tokens.append([own[node] for node in path])
    return paths, tokens


def accept_keyed(
    tree: Tree, scores: Scores, seed: Tensor, position: Tensor, sample: Tensor | None
) -> Step:
    """Walk down while a child is what the target says.

    Args:
        tree: the proposal.
        scores: see `Scores`.
        seed: `[b]` request seeds.
        position: `[b]` output position of the token behind the root.
        sample: `[b]` bool, False takes the argmax; None where every request does.

    Returns:
        The accepted path, and the target's token behind each of its nodes.
    """

    def choose(node: Tensor, walked: list[Tensor], alive: Tensor) -> Tensor:
        row = scores(node, walked, alive)
        if sample is None:
            return row.argmax(-1)
        column = torch.arange(row.shape[-1], device=row.device)
        noise = gumbel(seed[:, None], (position + len(walked))[:, None], column)
        # -inf stays -inf under finite noise; greedy rows must not move at all.
        return torch.where(sample, (row.double() + noise).argmax(-1), row.argmax(-1))

    b = tree.token.shape[0]
    device = tree.token.device
    node = torch.zeros(b, dtype=torch.long, device=device)
    alive = torch.ones(b, dtype=torch.bool, device=device)
    path, tokens = [node], list[Tensor]()
    walked: list[Tensor] = []
    for _ in range(tree.max_depth):
        token = choose(node, walked, alive)
        tokens.append(torch.where(alive, token, -1))
        walked.append(token)
        match = (tree.parent == node[:, None]) & (tree.token == token[:, None])
        alive = alive & match.any(1)
        node = torch.where(alive, match.int().argmax(1), node)
        path.append(torch.where(alive, node, -1))
    tokens.append(torch.where(alive, choose(node, walked, alive), -1))
    return Step(torch.stack(path, 1), torch.stack(tokens, 1))


def accept_stochastic(tree: Tree, scores: Scores, seed: Tensor, position: Tensor) -> Step:
    """Accept sampled children with min(1, p/q); on rejection go on with what is left of p.

    Args:
        tree: of a fixed shape, its children drawn without replacement from `tree.proposal`.
        scores: see `Scores`; the probabilities are the softmax of what it returns.
        seed: `[b]` request seeds.
        position: `[b]` output position of the token behind the root; with the node it keys the
            uniform numbers, so no number is used twice.

    Returns:
        The accepted path and tokens; the last token is drawn from the final residual.
    """
    shape, proposal = tree.shape, tree.proposal
    if shape is None or proposal is None:
        raise ValueError("stochastic acceptance needs a tree of fixed shape with its proposal")
    b, device = tree.token.shape[0], tree.token.device
    rows = torch.arange(b, device=device)
    node = torch.zeros(b, dtype=torch.long, device=device)
    alive = torch.ones(b, dtype=torch.bool, device=device)
    path, tokens = [node], list[Tensor]()
    walked: list[Tensor] = []
    for level in range(shape.depth + 1):
        p = scores(node, walked, alive).double().softmax(-1)
        chosen = node
        accepted = torch.zeros_like(alive)
        if level < shape.depth:
            start, branching = shape.level_starts[level : level + 2], shape.branching[level]
            q = proposal[rows, node.clamp(max=proposal.shape[1] - 1)].double()
            for rank in range(branching):
                child = start[1] + (node - start[0]) * branching + rank
                child = child.clamp(0, tree.size - 1)  # rows that stopped stand at another level
                token = tree.token[rows, child]
                drawn = token >= 0
                at = token.clamp(min=0)[:, None]
                q = normalised(q)
                u = uniform(seed, position, child, torch.ones_like(child))
                wins = drawn & (u * q.gather(1, at)[:, 0] < p.gather(1, at)[:, 0])
                chosen = torch.where(wins & ~accepted, child, chosen)
                accepted = accepted | wins
                p = torch.where((accepted | ~drawn)[:, None], p, residual(p, q))
                q = q.scatter(1, at, 0)
        noise = gumbel(
            seed[:, None],
            position[:, None],
            node[:, None],
            torch.full_like(node, 2)[:, None],
            torch.arange(p.shape[-1], device=device),
        )
        own = (p.log() + noise).argmax(-1)
        down = alive & accepted
        token = torch.where(down, tree.token[rows, chosen], own)
        tokens.append(torch.where(alive, token, -1))
        walked.append(token)
        node = torch.where(down, chosen, node)
        alive = down
        if level < shape.depth:
            path.append(torch.where(alive, node, -1))
    return Step(torch.stack(path, 1), torch.stack(tokens, 1))


def normalised(q: Tensor) -> Tensor:
    """`q [b, V]` scaled to sum to 1: what the next child was drawn from, siblings taken out."""
    return q / q.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """`norm(max(p - q, 0)) [b, V]`: what the target still has to say once a child was rejected."""
    rest = (p - q).clamp(min=0)
    mass = rest.sum(-1, keepdim=True)
    # No mass is left only where p equals q, and there nothing is ever rejected.
    return torch.where(mass > 0, rest / mass.clamp(min=torch.finfo(p.dtype).tiny), p)
