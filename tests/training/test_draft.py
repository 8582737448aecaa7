"""What a draft is trained on is what it will be asked when drafting, and training helps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import talking
import tiny
from vispec.decoding.engine import Engine
from vispec.decoding.tree import TreeShape
from vispec.drafts import EagleDraft
from vispec.targets import Target
from vispec.training import draft as training
from vispec.training import losses
from vispec.training.distill import Question, distill
from vispec.training.features import Sample, look

D = tiny.HIDDEN


def sample(length: int, answer_start: int, images: int, seed: int) -> Sample:
    """Random features of a text that begins with some images."""
    generator = torch.Generator().manual_seed(seed)
    embeddings, features = torch.randn(2, length, D, generator=generator, dtype=torch.float64)
    index = torch.full((length,), -1)
    for image in range(images):
        index[1 + 5 * image : 5 + 5 * image] = image
    return Sample(features, embeddings, index, answer_start)


SAMPLES = [sample(9, 4, 0, 1), sample(20, 14, 2, 2), sample(13, 12, 1, 3), sample(7, 2, 0, 4)]


def random_draft(queries: int | None = 3) -> EagleDraft:
    draft = tiny.draft(queries=queries)
    generator = torch.Generator().manual_seed(6)
    for parameter in draft.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    return draft


def guesses(draft: EagleDraft, sample: Sample, features: Tensor) -> Tensor:
    """The feature guessed at every answer position, each from what stands before it alone."""
    found = []
    for p in range(sample.answer_start, len(features)):
        rows = tiny.read(
            draft, sample.embeddings[:p], features[:p], sample.image_index[:p], sample.embeddings[p]
        )
        found.append(draft(rows.hidden[None], rows.position[None])[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("queries", [None, 3])
@pytest.mark.parametrize("self_fed", [0, 1, 2])
@torch.no_grad()
def test_every_pass_guesses_as_drafting_one_position_after_another(
    queries: int | None, self_fed: int
) -> None:
    """Batched and padded, against each position of each sample alone."""
    draft, head = random_draft(queries), tiny.target().head
    compute = training.stage(head, losses.text_stage, self_fed=self_fed)
    loss, numbers = compute(draft, SAMPLES)

    fed = [s.features for s in SAMPLES]
    wanted = torch.cat([s.features[s.answer_start :] for s in SAMPLES])
    total = torch.zeros(()).double()
    for turn in range(self_fed + 1):
        guessed = [guesses(draft, s, f) for s, f in zip(SAMPLES, fed, strict=True)]
        guess = torch.cat(guessed)
        total += losses.text_stage(guess, wanted, head(guess), head(wanted))
        right = head(guess).argmax(-1) == head(wanted).argmax(-1)
        assert numbers[f"accuracy_{turn + 1}"] == pytest.approx(right.double().mean().item())
        fed = [
            torch.cat([s.features[: s.answer_start], g])
            for s, g in zip(SAMPLES, guessed, strict=True)
        ]
    assert len(numbers) == self_fed + 1
    assert loss.item() == pytest.approx(total.item() / (self_fed + 1), rel=1e-5)


def test_only_the_draft_learns() -> None:
    draft, head = random_draft().requires_grad_(True), tiny.target().head
    loss, _ = training.stage(head, losses.multimodal_stage, self_fed=1, noise=0.1)(draft, SAMPLES)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in draft.parameters())
    assert head.weight.grad is None


def test_noise_disturbs_true_features_only_and_in_training_only() -> None:
    draft, head = random_draft(), tiny.target().head
    quiet = training.stage(head, losses.text_stage)
    loud = training.stage(head, losses.text_stage, noise=0.5)
    assert quiet(draft, SAMPLES)[0] == quiet(draft, SAMPLES)[0]
    assert loud(draft, SAMPLES)[0] != loud(draft, SAMPLES)[0]


@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (3, 8), (1, 1), (7, 7), (9, 2)])
def test_every_epoch_visits_each_sample_once(count: int, size: int) -> None:
    made = [sample(3, 1, 0, i) for i in range(count)]
    batch = training.batches(made, size, seed=5)
    number = {id(s): i for i, s in enumerate(made)}
    steps = -(-count // size)
    orders = []
    for epoch in range(3):
        chosen = [batch(epoch * steps + step) for step in range(steps)]
        assert all(len(each) <= size for each in chosen)
        order = [number[id(s)] for each in chosen for s in each]
        assert sorted(order) == list(range(count))
        orders.append(order)
    assert count < 7 or orders[0] != orders[1]


def test_a_batch_depends_on_its_step_alone() -> None:
    made = [sample(3, 1, 0, i) for i in range(10)]
    straight, jumping = (training.batches(made, 3, seed=5) for _ in range(2))
    expected = [straight(step) for step in range(12)]
    for step in (11, 0, 5, 3, 11, 7):
        assert [id(s) for s in jumping(step)] == [id(s) for s in expected[step]]
    other = training.batches(made, 3, seed=6)
    assert [id(s) for s in other(0)] != [id(s) for s in expected[0]]


def test_long_batches_are_cut_to_what_fits() -> None:
    made = [sample(length, 1, 0, length) for length in (3, 30, 4, 5, 200, 6)]
    for step in range(20):
        chosen = training.batches(made, 4, seed=1, positions=60)(step)
        assert chosen
        padded = len(chosen) * max(len(s.features) for s in chosen)
        assert padded <= 60 or len(chosen) == 1


@pytest.fixture(scope="module")
def target() -> Target:
    return talking.target(torch.float32)


@pytest.mark.slow
def test_a_draft_trained_in_both_stages_guesses_better_and_is_accepted_more(
    target: Target, tmp_path_factory: pytest.TempPathFactory
) -> None:
    questions = [
        Question(str(i), f"the {talking.LETTERS[i % 26]}", (lambda i=i: talking.picture(i)))
        for i in range(12)
    ]
    file = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    answers = distill(Engine(target), questions, file, max_new_tokens=24)
    samples = [look(target, q, answers[q.key]) for q in questions]
    # Inference tensors cannot be trained on; kept features come from files.
    samples = [
        Sample(s.features.clone(), s.embeddings.clone(), s.image_index.clone(), s.answer_start)
        for s in samples
    ]
    draft = tiny.draft(torch.float32).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    measure = training.stage(target.head, losses.text_stage, self_fed=2)
    shape = TreeShape(10, 3, 3)

    def accepted() -> float:
        engine = Engine(target, draft.eval(), tree=shape)
        stats = [engine.generate([q.request(24, 0)])[0].stats for q in questions]
        draft.train()
        return sum(s.new_tokens - 1 for s in stats) / sum(s.target_passes for s in stats)

    with torch.no_grad():
        before = measure(draft, samples)[1]
    accepted_before = accepted()
    for loss, self_fed, steps in ((losses.text_stage, 0, 120), (losses.multimodal_stage, 1, 120)):
        compute = training.stage(target.head, loss, self_fed=self_fed, noise=0.1)
        batch = training.batches(samples, 4, seed=0)
        history = []
        for step in range(steps):
            value, _ = compute(draft, batch(step))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            history.append(value.item())
        assert sum(history[-10:]) < 0.7 * sum(history[:10])
    with torch.no_grad():
        after = measure(draft, samples)[1]
    for turn in (1, 2, 3):
        assert after[f"accuracy_{turn}"] > before[f"accuracy_{turn}"] + 0.3
    assert accepted() > accepted_before + 0.5
