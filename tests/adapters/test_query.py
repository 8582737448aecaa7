"""The query adapter against attention written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vispec.adapters import QueryAdapter, build
from vispec.errors import SettingsError

D, HEADS, QUERIES = 12, 3, 4


def adapter(queries: int = QUERIES, bias: bool = False) -> QueryAdapter:
    torch.manual_seed(0)
    made = QueryAdapter(D, HEADS, queries, bias).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made.requires_grad_(False)


def by_hand(adapter: QueryAdapter, visual: Tensor) -> Tensor:
    """`[queries, d]` for one image `[n, d]`, one query and one head at a time."""
    queries, heads, size = adapter.q.shape
    key, value = adapter.k_proj(visual), adapter.v_proj(visual)
    rows = []
    for query in range(queries):
        parts = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = key[:, own] @ adapter.q[query, head] / size**0.5
            parts.append(scores.softmax(0) @ value[:, own])
        rows.append(adapter.o_proj(torch.cat(parts)))
    return torch.stack(rows)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_each_query_attends_to_the_image_and_the_last_is_the_global_one(
    queries: int, bias: bool
) -> None:
    made = adapter(queries, bias)
    visual = torch.randn(3, 7, D).double()
    found = made(visual)
    assert found.tokens.shape == (3, queries - 1, D)
    assert found.globals.shape == (3, D)
    for row in range(3):
        expected = by_hand(made, visual[row])
        torch.testing.assert_close(found.tokens[row], expected[:-1])
        torch.testing.assert_close(found.globals[row], expected[-1])


def test_masked_tokens_are_as_good_as_absent() -> None:
    made = adapter()
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        n = int(torch.randint(1, 9, (1,), generator=generator))
        visual = torch.randn(2, n, D, generator=generator).double()
        mask = torch.rand(2, n, generator=generator) < 0.6
        mask[:, int(torch.randint(n, (1,), generator=generator))] = True
        found = made(visual, mask)
        for row in range(2):
            short = made(visual[row, mask[row]][None])
            torch.testing.assert_close(found.tokens[row], short.tokens[0])
            torch.testing.assert_close(found.globals[row], short.globals[0])


def test_what_padding_holds_is_never_seen() -> None:
    made = adapter()
    visual = torch.randn(1, 6, D).double()
    mask = torch.tensor([[True, True, True, False, False, False]])
    other = visual.clone()
    other[:, 3:] = 1e6
    assert torch.equal(made(visual, mask).tokens, made(other, mask).tokens)
    assert torch.equal(made(visual, mask).globals, made(other, mask).globals)


def test_a_full_mask_is_no_mask() -> None:
    made = adapter()
    visual = torch.randn(2, 5, D).double()
    full = made(visual, torch.ones(2, 5, dtype=torch.bool))
    torch.testing.assert_close(full.tokens, made(visual).tokens)
    torch.testing.assert_close(full.globals, made(visual).globals)


def test_the_order_of_an_images_tokens_does_not_matter() -> None:
    made = adapter()
    visual = torch.randn(1, 8, D).double()
    torch.testing.assert_close(made(visual.flip(1)).tokens, made(visual).tokens)


def test_one_that_stands_beside_an_image_is_no_part_of_another() -> None:
    beside = {"kind": "query", "heads": HEADS, "beside": True}
    assert build(beside, D).keeps
    with pytest.raises(SettingsError, match="used alone"):
        build([{"kind": "pooling", "keep": 2}, beside], D)
