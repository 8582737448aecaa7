"""Sequential drafts do what was recorded of the published ViSpec, EAGLE-2 and EAGLE-3 drafts."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import tiny
from recordings import Recording, cases, load
from vispec.decoding.tree import Tree, ancestor_mask

CASES = [*cases("vispec_draft"), *cases("eagle_draft")]
pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("no_grad")]


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=CASES)
def recording(request: pytest.FixtureRequest) -> Recording:
    return load(request.param)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def paths(tree: Tree) -> set[tuple[int, ...]]:
    """Root-to-leaf node indices."""
    parent = tree.parent[0].tolist()
    found = set()
    for leaf in set(range(tree.size)) - set(parent):
        path = [leaf]
        while parent[path[0]] >= 0:
            path.insert(0, parent[path[0]])
        found.add(tuple(path))
    return found


def assert_tree(recording: Recording, tree: Tree, prefix: str) -> None:
    assert torch.equal(tree.token, recording[f"{prefix}.tokens"])
    assert torch.equal(tree.depth[0], recording[f"{prefix}.depth"])
    assert torch.equal(
        ancestor_mask(tree.parent, tree.max_depth)[0], recording[f"{prefix}.mask"][0, 0].bool()
    )
    recorded = {tuple(n for n in row if n >= 0) for row in recording[f"{prefix}.paths"].tolist()}
    assert paths(tree) == recorded


def test_the_adapter_compresses_the_image_as_recorded() -> None:
    seen = 0
    for case in cases("vispec_draft"):
        recording = load(case)
        if "adapter.output" not in recording.tensors:
            continue
        assert recording.draft.adapter is not None
        visual = recording["target_embeds"][recording["image_mask"]]
        compressed = recording.draft.adapter(visual[None])
        close(compressed.tokens, recording["adapter.output"][:, :-1])
        close(compressed.globals, recording["adapter.output"][:, -1])
        seen += 1
    assert seen


def test_reading_a_prompt_fills_the_cache_as_recorded(recording: Recording) -> None:
    recording.begin()
    session, n = recording.session, recording.session.cache.length[0]
    close(session.cache.stores[0][0, 0, :, :, :n], recording["prefill.key"])
    close(session.cache.stores[0][0, 1, :, :, :n], recording["prefill.value"])
    close(session.hidden[0], recording["prefill.output"][0, -1])
    if "prefill.kv_len" in recording.tensors:
        assert n == int(recording["prefill.kv_len"])
        assert session.position[0] == int(recording["prefill.next_position"])
        close(session.globals, recording["prefill.global"])


def test_every_row_of_a_prompt_comes_out_as_recorded(recording: Recording) -> None:
    prefill = recording.prefill
    following = recording.session.embedding(recording["input_ids"][0, -1])
    rows = tiny.read(
        recording.draft, prefill.embeddings, prefill.features, prefill.image_index, following
    )
    hidden = recording.draft(rows.hidden[None], rows.position[None])
    scattered = torch.zeros_like(recording["prefill.output"])
    scattered[0, rows.position] = hidden[0]
    close(scattered, recording["prefill.output"])


def test_the_first_and_the_second_tree_are_the_recorded_ones(recording: Recording) -> None:
    recording.begin()
    root = recording["input_ids"][:, -1]
    assert_tree(recording, recording.session.propose(root, recording.shape, None), "tree")
    tokens = recording["advance.tokens"]
    recording.session.advance([[0, 1, 2]], tokens.tolist(), recording["advance.target_hidden"])
    if "advance.kv_len" in recording.tensors:
        assert recording.session.cache.length[0] == int(recording["advance.kv_len"])
        assert recording.session.position[0] == int(recording["advance.next_position"])
    tree = recording.session.propose(tokens[:, -1], recording.shape, None)
    assert_tree(recording, tree, "advance.tree")


def test_a_request_drafts_the_same_alone_and_in_a_batch(recording: Recording) -> None:
    recording.begin()
    root = recording["input_ids"][:, -1]
    alone = recording.session.propose(root, recording.shape, None)
    batch = load_like(recording, slots=3)
    for slot in range(3):
        batch.begin(slot)
    tree = batch.session.propose(root.expand(3), recording.shape, None)
    for row in range(3):
        assert torch.equal(tree.token[row], alone.token[0])
        assert torch.equal(tree.parent[row], alone.parent[0])
    # Rows accept different numbers of tokens; the padding must not leak into the next tree.
    tokens = recording["advance.tokens"][0].tolist()
    features = recording["advance.target_hidden"].expand(3, -1, -1)
    batch.session.advance([[0], [0, 1, 2], [0, 1]], [tokens[:1], tokens, tokens[:2]], features)
    roots = torch.tensor([tokens[0], tokens[2], tokens[1]])
    tree = batch.session.propose(roots, recording.shape, None)
    assert torch.equal(tree.token[1], recording["advance.tree.tokens"][0])


def load_like(recording: Recording, slots: int) -> Recording:
    """The same recording in a session with more slots."""
    target = SimpleNamespace(head=recording.session.head, device=torch.device("cpu"))
    session = recording.draft.session(target, slots, recording.session.cache.capacity)  # type: ignore[arg-type]
    return Recording(recording.meta, recording.tensors, recording.draft, session)
