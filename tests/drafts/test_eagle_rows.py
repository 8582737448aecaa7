"""The draft's sequence, laid out one position at a time: several images, tiles, and the text."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import tiny
from trees import path
from vispec.decoding.tree import TreeShape
from vispec.drafts import EagleDraft
from vispec.targets.base import Prefill, Prompt

D = tiny.HIDDEN


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


def random_draft(queries: int | None) -> EagleDraft:
    """Random in every part; an untrained draft would ignore the global vector."""
    draft = tiny.draft(queries=queries)
    generator = torch.Generator().manual_seed(5)
    for parameter in draft.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    return draft


def layout(draw: random.Random, queries: int) -> list[int]:
    """`image_index` of a prompt: stretches of text, and images of one or more tiles."""
    found = [-1] * draw.randint(1, 3)
    for image in range(draw.randint(0, 4)):
        tiles = draw.choice((1, 1, 1, 2, 3))
        for tile in range(tiles):
            # The last tile has room for what the adapter leaves of the image.
            smallest = max(1, queries - 1) if tile == tiles - 1 else 1
            found += [image] * draw.randint(smallest, smallest + 5)
            if tile < tiles - 1:
                found += [-1] * draw.randint(1, 3)
        found += [-1] * draw.choice((0, 0, 1, 4))
    return found + [-1] * draw.randint(0, 3)


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def by_hand(
    draft: EagleDraft, embeddings: Tensor, features: Tensor, index: list[int], following: Tensor
) -> tuple[dict[int, Tensor], Tensor]:
    """The draft's rows by position, and the global vector behind the prompt."""
    t = len(index)
    token = [*embeddings[1:], following]  # row p holds the token at p + 1
    image = [*index[1:], -1]
    rows: dict[int, Tensor] = {}
    g = torch.zeros(D).double()

    def text_row(p: int) -> Tensor:
        feature = features[p]
        if draft.img_fc is not None:
            feature = draft.img_fc(torch.cat([feature, g]))
        return draft.fc(torch.cat([token[p], feature]))

    for p in range(t):
        if image[p] < 0 or draft.adapter is None:
            rows[p] = text_row(p)
        elif image[p] not in image[p + 1 :]:  # the last position of this image's last tile
            visual = torch.stack([token[i] for i in range(t) if image[i] == image[p]])
            compressed = draft.adapter(visual[None])
            kept = compressed.tokens[0]
            for i, row in enumerate(kept):
                rows[p - len(kept) + 1 + i] = row
            g = compressed.globals[0]
    return rows, g


@pytest.mark.parametrize("queries", [None, 1, 2, 4])
def test_rows_are_those_laid_out_one_position_at_a_time(queries: int | None) -> None:
    draft = random_draft(queries)
    images = tiles = 0
    for seed in range(100):
        draw = random.Random(seed)
        index = layout(draw, queries or 0)
        embeddings, features = numbers(2, len(index), D, seed=seed)
        following = numbers(D, seed=seed + 1000)
        rows = tiny.read(draft, embeddings, features, torch.tensor(index), following)
        expected, g = by_hand(draft, embeddings, features, index, following)
        positions = rows.position.tolist()
        assert positions == sorted(expected)
        torch.testing.assert_close(rows.hidden, torch.stack([expected[p] for p in positions]))
        torch.testing.assert_close(rows.globals, g if queries else torch.zeros(D).double())
        images += max(index) + 1
        tiles += sum(a != b and b >= 0 for a, b in zip([-1, *index], index, strict=False))
    assert images > 100
    assert tiles > images


def test_text_before_any_image_has_no_global_vector() -> None:
    draft = random_draft(3)
    embeddings, features = numbers(2, 9, D, seed=0)
    following = numbers(D, seed=1)
    alone = tiny.read(draft, embeddings, features, torch.full((9,), -1), following)
    assert torch.equal(alone.globals, torch.zeros(D).double())
    index = torch.tensor([-1] * 4 + [0] * 5)
    seen = tiny.read(draft, embeddings, features, index, following)
    torch.testing.assert_close(seen.hidden[:3], alone.hidden[:3])
    assert not torch.allclose(seen.hidden[-1], alone.hidden[-1])


def test_a_prompt_that_begins_with_an_image_is_read() -> None:
    """Its first token has no position before it to be paired with."""
    draft = random_draft(3)
    for size in (3, 6):
        index = torch.tensor([0] * size + [-1] * 3)
        embeddings, features = numbers(2, len(index), D, seed=2)
        rows = tiny.read(draft, embeddings, features, index, numbers(D, seed=3))
        assert rows.hidden.isfinite().all()
        assert rows.position.tolist() == sorted(set(rows.position.tolist()))
        assert rows.position[-1] == len(index) - 1


# --- Drafting -------------------------------------------------------------------------------------


def situation(seed: int, queries: int | None) -> tuple[EagleDraft, list[int], Tensor, Tensor]:
    """A random draft, and a text with images: `image_index`, embeddings and features."""
    draft = random_draft(queries)
    index = [*layout(random.Random(seed), queries or 0), -1]
    embeddings, features = numbers(2, len(index), D, seed=seed)
    return draft, index, embeddings, features


def last_hidden(draft: EagleDraft, rows: list[Tensor], positions: list[int]) -> Tensor:
    """What the draft guesses behind a sequence of rows, without any cache."""
    return draft(torch.stack(rows)[None], torch.tensor([positions]))[0, -1]


@pytest.mark.parametrize("queries", [None, 3])
def test_taking_in_accepted_tokens_is_reading_the_longer_text(queries: int | None) -> None:
    target = tiny.target()
    for seed in range(20):
        draw = random.Random(seed)
        draft, index, embeddings, features = situation(seed, queries)
        b = 3
        session = draft.session(target, b, 200)
        said = [[draw.randrange(tiny.VOCAB)] for _ in range(b)]
        seen = [features for _ in range(b)]
        for slot in range(b):
            prompt = Prompt([0] * len(index), {})
            prefill = Prefill(torch.empty(0), features, embeddings, torch.tensor(index), 0, 0)
            session.begin(slot, prompt, prefill, said[slot][0])
        for step in range(3):
            n = 6
            nodes = [sorted({0, *draw.sample(range(n), draw.randint(0, 3))}) for _ in range(b)]
            tokens = [[draw.randrange(tiny.VOCAB) for _ in row] for row in nodes]
            fresh = numbers(b, n, D, seed=100 * seed + step)
            session.advance(nodes, tokens, fresh)
            for slot in range(b):
                seen[slot] = torch.cat([seen[slot], fresh[slot, nodes[slot]]])
                said[slot] += tokens[slot]
                words = target.embedding(torch.tensor(said[slot]))
                rows, g = by_hand(
                    draft,
                    torch.cat([embeddings, words[:-1]]),
                    seen[slot],
                    index + [-1] * (len(said[slot]) - 1),
                    words[-1],
                )
                order = sorted(rows)
                expected = last_hidden(draft, [rows[p] for p in order], order)
                torch.testing.assert_close(session.hidden[slot], expected, rtol=0, atol=1e-10)
                torch.testing.assert_close(session.globals[slot], g if queries else g * 0)
                assert session.position[slot] == len(seen[slot])


@pytest.mark.parametrize("queries", [None, 3])
def test_every_nodes_probability_is_that_of_its_path_drafted_alone(queries: int | None) -> None:
    target, shape = tiny.target(), TreeShape(14, 4, 3)
    for seed in range(8):
        draft, index, embeddings, features = situation(seed, queries)
        first = seed % tiny.VOCAB
        session = draft.session(target, 2, 200)
        # Another request in the batch, which must make no difference.
        prompt = Prompt([0] * len(index), {})
        prefill = Prefill(torch.empty(0), features, embeddings, torch.tensor(index), 0, 0)
        other, text = Prompt([0] * 5, {}), torch.full((5,), -1)
        opening = Prefill(torch.empty(0), features[:5], embeddings[:5], text, 0, 0)
        session.begin(0, other, opening, 9)
        session.begin(1, prompt, prefill, first)
        tree = session.propose(torch.tensor([9, first]), shape, None)

        rows, g = by_hand(draft, embeddings, features, index, target.embedding.weight[first])
        order = sorted(rows)
        parent, token = tree.parent[1].tolist(), tree.token[1].tolist()
        for node in range(1, tree.size):
            sequence, positions = [rows[p] for p in order], list(order)
            score = 0.0
            for at in path(parent, node)[1:]:
                guess = last_hidden(draft, sequence, positions)
                score += target.head(guess).log_softmax(-1)[token[at]].item()
                feature = guess
                if draft.img_fc is not None:
                    feature = draft.img_fc(torch.cat([guess, g]))
                word = target.embedding.weight[token[at]]
                sequence.append(draft.fc(torch.cat([word, feature])))
                positions.append(len(index) + len(positions) - len(order))
            assert tree.logprob[1, node].item() == pytest.approx(score, abs=1e-4)


def test_a_moved_request_drafts_as_it_did_before() -> None:
    target, shape = tiny.target(), TreeShape(12, 3, 3)
    sessions = [random_draft(3).session(target, 3, 100) for _ in range(2)]
    for slot in range(3):
        _, index, embeddings, features = situation(slot, 3)
        prompt = Prompt([0] * len(index), {})
        prefill = Prefill(torch.empty(0), features, embeddings, torch.tensor(index), 0, 0)
        for session in sessions:
            session.begin(slot, prompt, prefill, slot)
    before = sessions[0].propose(torch.arange(3), shape, None)
    sessions[1].move(2, 0)
    after = sessions[1].propose(torch.tensor([2, 1]), shape, None)
    for row, old in ((0, 2), (1, 1)):
        assert torch.equal(after.token[row], before.token[old])
        torch.testing.assert_close(after.logprob[row], before.logprob[old])
