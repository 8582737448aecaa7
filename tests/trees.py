"""Random trees as lists of parents, and what walking them one node at a time finds."""

from __future__ import annotations

import torch
from torch import Tensor


def random_parents(b: int, n: int, generator: torch.Generator, depth: float = 0.3) -> Tensor:
    """`[b, n]` parents before their children; `depth` 1 makes chains, 0 any tree."""
    rows = []
    for _ in range(b):
        row = [-1]
        for i in range(1, n):
            anywhere = int(torch.randint(i, (1,), generator=generator))
            row.append(i - 1 if torch.rand(1, generator=generator).item() < depth else anywhere)
        rows.append(row)
    return torch.tensor(rows)


def path(parents: list[int], node: int) -> list[int]:
    """The nodes from the root down to `node`."""
    found = [node]
    while parents[found[0]] >= 0:
        found.insert(0, parents[found[0]])
    return found


def depths(parent: Tensor) -> Tensor:
    """`[b, n]` by walking up from every node."""
    return torch.tensor(
        [[len(path(row, node)) - 1 for node in range(len(row))] for row in parent.tolist()]
    )


def ancestors(parent: Tensor) -> Tensor:
    """`[b, n, n]` by walking up from every node."""
    b, n = parent.shape
    seen = torch.zeros(b, n, n, dtype=torch.bool)
    for row, parents in enumerate(parent.tolist()):
        for node in range(n):
            seen[row, node, path(parents, node)] = True
    return seen
