"""What a draft is trained on is what it will be asked when drafting, and training helps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import spread
import talking
import tiny
from drafts.test_reading import NETWORKS
from drafts.test_reading import draft as made
from vispec.adapters import build
from vispec.decoding.engine import Engine
from vispec.decoding.tree import TreeShape
from vispec.drafts import Eagle3Config, Eagle3Draft, EagleConfig, EagleDraft
from vispec.drafts.reading import Seen
from vispec.drafts.sequential import SequentialDraft
from vispec.targets import Target
from vispec.training import draft as training
from vispec.training import losses
from vispec.training.distill import Answer, Question, distill
from vispec.training.features import Online, Sample
from vispec.training.trainer import Settings, Trainer

D = tiny.HIDDEN


def sample(length: int, answer_start: int, images: int, seed: int, width: int = D) -> Sample:
    """Random features of a text that begins with some images."""
    generator = torch.Generator().manual_seed(seed)
    embeddings, hidden = torch.randn(2, length, D, generator=generator, dtype=torch.float64)
    features = torch.randn(length, width, generator=generator, dtype=torch.float64)
    index = torch.full((length,), -1)
    for image in range(images):
        index[1 + 5 * image : 5 + 5 * image + seed % 3] = image
    ids = torch.randint(3, tiny.IMAGE_TOKEN, (length,), generator=generator)
    tokens = torch.cat([ids[answer_start + 1 :], torch.tensor([-1])])
    place = torch.arange(length)
    return Sample(features, hidden, embeddings, index, ids, tokens, place)


def samples(width: int = D) -> list[Sample]:
    return [
        sample(9, 4, 0, 1, width),
        sample(20, 14, 2, 2, width),
        sample(13, 12, 1, 3, width),
        sample(7, 2, 0, 4, width),
    ]


SAMPLES = samples()
KINDS = [(network, adapter) for network in NETWORKS for adapter in ("none", "query", "pooling")]


def random_draft(queries: int | None = 3) -> EagleDraft:
    draft = tiny.draft(queries=queries)
    generator = torch.Generator().manual_seed(6)
    for parameter in draft.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    return draft


def chained(draft: SequentialDraft, one: Sample, root: int, steps: int) -> Tensor:
    """What drafting guesses behind `root` and so many true tokens more, each from its last guess.

    Step by step, without any cache: the rows of the text up to the root, then one row a step.
    """
    rows = tiny.read(
        draft,
        one.embeddings[:root],
        one.features[:root],
        one.image_index[:root],
        one.embeddings[root],
    )
    hidden, position = rows.hidden, rows.position
    for step in range(steps + 1):
        guess = draft(hidden[None], position[None])[0, -1]
        if step < steps:
            row = draft.combine(one.embeddings[root + step + 1], guess, rows.globals)
            hidden = torch.cat([hidden, row[None]])
            position = torch.cat([position, torch.tensor([root + step])])
    return guess


@pytest.mark.parametrize(("network", "adapter"), KINDS)
@torch.no_grad()
def test_every_pass_guesses_as_drafting_does_step_by_step(network: str, adapter: str) -> None:
    """Batched and padded, against every chain of every sample alone."""
    draft = made(network, adapter)
    batch = samples(D if network == "eagle" else 3 * D)
    passes = training.unroll(draft, training._Asked.of(batch, draft), 3)
    assert len(passes.guesses) == 4
    compared = 0
    for row, one in enumerate(batch):
        for place in range(len(one.tokens)):
            for turn in range(min(place, 3) + 1):
                expected = chained(draft, one, one.answer_start + place - turn, turn)
                torch.testing.assert_close(passes.guesses[turn][row, place], expected)
                compared += 1
    assert compared > 40


@pytest.mark.parametrize(("network", "adapter"), KINDS)
@pytest.mark.parametrize(("self_fed", "decay"), [(0, 1.0), (1, 1.0), (2, 0.5)])
@torch.no_grad()
def test_the_loss_is_the_mean_over_all_chains(
    network: str, adapter: str, self_fed: int, decay: float
) -> None:
    draft, target = made(network, adapter), tiny.target()
    batch = samples(D if network == "eagle" else 3 * D)
    weights = {"features": 1.0, "soft_cross_entropy": 0.1}
    stage = training.Stage(draft, target, weights, self_fed=self_fed, decay=decay)
    loss, numbers = stage(batch)
    total, positions = 0.0, training.Stage.weight(batch)
    scale = sum(decay**turn for turn in range(self_fed + 1))
    for turn in range(self_fed + 1):
        right, chains = 0, 0
        for one in batch:
            for place in range(turn, len(one.tokens)):
                guess = chained(draft, one, one.answer_start + place - turn, turn)[None]
                true = one.hidden[one.answer_start + place][None]
                logits, true_logits = draft.logits(guess, target.head), target.head(true)
                one_loss = losses.weighted(weights)(
                    losses.Guess(guess, true, logits, losses.Truth(true_logits))
                )
                total += decay**turn / scale * one_loss.item() / positions
                right += int(logits.argmax() == true_logits.argmax())
                chains += 1
        assert numbers[f"accuracy_{turn + 1}"] == pytest.approx(right / chains)
    assert loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 1000])
@pytest.mark.parametrize("network", NETWORKS)
def test_blocks_of_logits_give_what_all_of_them_do(
    network: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = samples(D if network == "eagle" else 3 * D)
    same_in_blocks(
        lambda: training.Stage(
            made(network, "query").requires_grad_(True),
            tiny.target(),
            losses.MULTIMODAL_STAGE,
            self_fed=2,
            decay=0.7,
        ),
        batch,
        rows * tiny.VOCAB,
        monkeypatch,
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_acceptance_is_the_same_in_blocks(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = samples(D if network == "eagle" else 3 * D)
    draft = made(network, "query").eval()
    whole = training.acceptance(draft, tiny.target(), batch)
    monkeypatch.setattr(training, "LOGITS", 3 * tiny.VOCAB)
    assert training.acceptance(draft, tiny.target(), batch) == whole


def same_in_blocks(
    stage: Callable[[], Any], batch: Any, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, numbers and gradients of a stage are the same where no more logits are kept."""
    found = []
    for most in (training.LOGITS, limit):
        monkeypatch.setattr(training, "LOGITS", most)
        one = stage()
        loss, numbers = one(batch)
        loss.backward()
        found.append((loss.item(), numbers, [p.grad for p in one.draft.parameters()]))
    (loss, numbers, gradients), (other, others, others_gradients) = found
    assert other == pytest.approx(loss, rel=1e-6)
    assert others == pytest.approx(numbers)
    for one, two in zip(gradients, others_gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


APART = """
import sys
import torch
from pathlib import Path
from accelerate import PartialState
sys.path[:0] = {path!r}
import spread
assert PartialState(cpu=True).num_processes == 2
from training.test_draft import two_steps
torch.save(two_steps(Path(sys.argv[2])), sys.argv[2] + "/weights.pt")
spread.leave()
"""


def two_steps(folder: Path) -> dict[str, torch.Tensor]:
    """What two steps make of a draft, on texts with and without images of several lengths."""
    target = tiny.target()
    draft = random_draft().double().requires_grad_(True).train()
    stage = training.Stage(draft, target, losses.MULTIMODAL_STAGE, self_fed=2, decay=0.7)
    batches = training.Batches(SAMPLES, 4, seed=0, positions=40)
    chosen = Settings(folder, 1e-3, budget_steps=2, autocast=False, matrix_rate=0)
    split, load = training.split, batches.load
    Trainer(
        stage, batches, lambda model, batch: model(batch), chosen, split=split, load=load,
        weigh=training.Stage.weight,
    ).run()  # fmt: skip
    return {key: value.detach() for key, value in draft.state_dict().items()}


@pytest.mark.slow
def test_two_processes_train_a_draft_as_one(tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in random_draft().state_dict().items()}
    whole = two_steps(tmp_path / "one")
    script = tmp_path / "script.py"
    script.write_text(APART.format(path=sys.path))
    spread.run("whole", script, tmp_path / "two")
    found = torch.load(tmp_path / "two" / "weights.pt")
    moved = max((whole[key] - value).abs().max() for key, value in before.items())
    assert moved > 5e-4
    for key, value in whole.items():
        # Logits are float32, and AdamW divides by small numbers.
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("network", "adapter"), KINDS)
def test_only_the_draft_learns(network: str, adapter: str) -> None:
    draft, target = made(network, adapter).requires_grad_(True).train(), tiny.target()
    batch = samples(D if network == "eagle" else 3 * D)
    stage = training.Stage(draft, target, losses.MULTIMODAL_STAGE, self_fed=1, relative_noise=0.1)
    assert {id(p) for p in stage.parameters()} == {id(p) for p in draft.parameters()}
    loss, _ = stage(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in draft.parameters())
    assert target.head.weight.grad is None
    assert target.head.weight.requires_grad


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["pruning", "elastic"])
def test_choices_are_learnt_where_the_size_of_tokens_says_nothing(network: str, kind: str) -> None:
    """EAGLE-3's draft norms what an adapter makes of an image before anything else reads it."""
    pruning = {"kind": "pruning", "keep": 2}
    parts = [pruning, {"kind": "pooling", "keep": 2}, {"kind": "query", "heads": 2, "queries": 3}]
    settings = pruning if kind == "pruning" else {"kind": "elastic", "parts": parts}
    draft = made(network, "none")
    draft.adapter = build(settings, D)
    for parameter in draft.adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    draft = draft.double().requires_grad_(True).train()
    torch.manual_seed(0)
    loss, _ = training.Stage(draft, tiny.target(), {"soft_cross_entropy": 1.0})(
        samples(D if network == "eagle" else 3 * D)
    )
    loss.backward()
    names = ("query", "asked.weight", "key.weight") if kind == "pruning" else ("gate.weight",)
    learnt = dict(draft.adapter.named_parameters())
    for name in names:
        grad = learnt[name].grad
        assert grad is not None
        # 1e-8 and less by sizes alone, of which the norm leaves what its epsilon does.
        assert grad.norm() > 1e-6 * loss.item(), name


def test_what_an_adapter_itself_wants_is_a_part_of_the_loss() -> None:
    torch.manual_seed(0)
    parts = {"kind": "mlp", "inner": 8, "reconstruct": 0.5}
    draft = EagleDraft(EagleConfig(D, 48, 4, 2, tiny.VOCAB), build(parts, D)).double()
    stage = training.Stage(draft, tiny.target(), losses.TEXT_STAGE)
    without = stage.eval()(SAMPLES)[0]
    assert draft.adapter is not None
    missed, positions = 0.0, training.Stage.weight(SAMPLES)
    for one in SAMPLES:
        count = int(one.image_index.max()) + 1
        for image in range(count):
            shown = one.embeddings[1:][one.image_index[1:] == image]
            apart = torch.nn.functional.smooth_l1_loss(draft.adapter.map(shown), shown).item()
            missed += apart * len(one.tokens) / count / positions
    whole = stage.train()(SAMPLES)[0]
    torch.testing.assert_close(whole, without + 0.5 * missed)
    split = [
        stage(part)[0] * (training.Stage.weight(part) / positions)
        for part in (SAMPLES[:1], SAMPLES[1:3], SAMPLES[3:])
    ]
    torch.testing.assert_close(sum(split), whole)


@pytest.mark.parametrize("noise", [{"noise": 0.5}, {"relative_noise": 0.2}])
def test_noise_disturbs_what_is_read_of_the_target_and_in_training_only(
    noise: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, target = random_draft(), tiny.target()
    stage = training.Stage(draft, target, losses.TEXT_STAGE, **noise)
    seen: list[list[Seen]] = []
    read = draft.read
    monkeypatch.setattr(draft, "read", lambda texts: seen.append(texts) or read(texts))
    loud = [stage.train()(SAMPLES)[0].item() for _ in range(2)]
    quiet = [stage.eval()(SAMPLES)[0].item() for _ in range(2)]
    assert loud[0] != loud[1]
    assert quiet[0] == quiet[1]
    for disturbed, one in zip(seen[0], SAMPLES, strict=True):
        true = one.features[:-1]
        moved = (disturbed.features - true).abs()
        reach = noise.get("noise", 0) / 2 * 512 / len(true)
        reach += noise.get("relative_noise", 0) * true.std().item()
        assert reach / 2 < moved.max().item() <= reach
        assert torch.equal(disturbed.embeddings, one.embeddings)
    # What is learnt is the true one.
    with torch.no_grad():
        asked = training._Asked.of(SAMPLES, draft)
    assert torch.equal(asked.hidden[0, : len(SAMPLES[0].tokens)], SAMPLES[0].hidden[4:])


def test_a_reduced_vocabulary_learns_of_its_own_tokens() -> None:
    known = torch.arange(3, tiny.VOCAB, 2)
    config = Eagle3Config(D, 48, 4, 2, tiny.VOCAB, len(known), aux_layers=(0, 1, 2))
    torch.manual_seed(0)
    draft, target = Eagle3Draft(config, known).double(), tiny.target()
    batch = samples(3 * D)
    with torch.no_grad():
        loss, _ = training.Stage(draft, target, {"kl": 1.0})(batch)
        guess = torch.cat(
            [training.unroll(draft, training._Asked.of([s], draft), 0).guesses[0][0] for s in batch]
        )
        found = draft.logits(guess, target.head).log_softmax(-1)
        true = target.head(torch.cat([s.hidden[s.answer_start :] for s in batch]))[
            :, known
        ].log_softmax(-1)
        expected = (true.exp() * (true - found)).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("positions", [8192, 20])
@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (3, 8), (1, 1), (7, 7), (9, 2)])
def test_every_epoch_visits_each_sample_once(count: int, size: int, positions: int) -> None:
    given = [sample(3 + i, 1, 0, i) for i in range(count)]
    batches = training.Batches(given, size, 5, positions)
    number = {id(s): i for i, s in enumerate(given)}
    steps = -(-count // size)
    orders = []
    for epoch in range(3):
        chosen = [batches(epoch * steps + step) for step in range(steps)]
        assert all(len(each) <= size for each in chosen)
        order = [place for each in chosen for place in each]
        assert sorted(order) == list(range(count))
        # What is read are those samples, each once, however long they are.
        for each in chosen:
            read = [number[id(s)] for group in batches.load(each) for s in group]
            assert sorted(read) == sorted(each)
        orders.append(order)
    assert count < 7 or orders[0] != orders[1]


def test_a_batch_depends_on_its_step_alone() -> None:
    given = [sample(3, 1, 0, i) for i in range(10)]
    straight, jumping = (training.Batches(given, 3, seed=5) for _ in range(2))
    expected = [straight(step) for step in range(12)]
    for step in (11, 0, 5, 3, 11, 7):
        assert jumping(step) == expected[step]
    assert training.Batches(given, 3, seed=6)(0) != expected[0]


def test_long_batches_are_taken_apart_into_what_fits() -> None:
    given = [sample(length, 1, 0, length) for length in (3, 30, 4, 5, 200, 6)]
    batches = training.Batches(given, 6, seed=1, positions=60)
    sizes = []
    for group in batches.load(batches(0)):
        padded = len(group) * max(len(s.features) for s in group)
        assert padded <= 60 or len(group) == 1
        sizes.append(len(group))
    assert sizes == [1, 2, 3]
    whole = training.Batches(given, 6, seed=1)
    (group,) = whole.load(whole(0))
    assert [id(s) for s in group] == [id(given[place]) for place in whole(0)]


@pytest.fixture(scope="module")
def target() -> Target:
    return talking.target(torch.float32)


@pytest.fixture(scope="module")
def answered(target: Target, tmp_path_factory: pytest.TempPathFactory) -> tuple[list, list]:
    """Questions, and what the target said, ready to train on."""
    questions = [
        Question(str(i), f"the {talking.LETTERS[i % 26]}", [lambda i=i: talking.picture(i)])
        for i in range(12)
    ]
    file = tmp_path_factory.mktemp("answers")
    answers = distill(Engine(target), questions, file, max_new_tokens=24)
    return questions, list(Online(target, questions, answers))


def accepted(target: Target, draft: SequentialDraft, questions: list, shape: TreeShape) -> float:
    """Tokens a pass, decoding as users do."""
    engine = Engine(target, draft, tree=shape)
    stats = [engine.generate([q.request(24, 0)])[0].stats for q in questions]
    return sum(s.new_tokens - 1 for s in stats) / sum(s.target_passes for s in stats)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize(("network", "adapter"), [("eagle", "query"), ("eagle3", "pooling")])
def test_acceptance_without_decoding_is_that_of_decoding(
    network: str, adapter: str, depth: int
) -> None:
    """Of drafts that know a little: trained for a moment."""
    target = talking.target()
    questions = [
        Question(str(i), f"the {talking.LETTERS[i % 26]}", [lambda i=i: talking.picture(i)])
        for i in range(6)
    ]
    draft = made(network, adapter).requires_grad_(True).train()
    engine = Engine(target)
    said = [engine.generate([q.request(24, 0)])[0] for q in questions]
    answers = {
        q.key: Answer(q.key, result.token_ids, result.text)
        for q, result in zip(questions, said, strict=True)
    }
    data = list(Online(target, questions, answers, draft.feature_layers(target)))
    stage = training.Stage(draft, target, {"soft_cross_entropy": 1.0}, self_fed=1)
    optimizer = torch.optim.Adam(draft.parameters(), 3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        stage(data)[0].backward()
        optimizer.step()
    draft.eval().requires_grad_(False)
    found = training.acceptance(draft, target, data, depth)
    decoded = accepted(target, draft, questions, TreeShape.chain(depth))
    assert found["acceptance_length"] == pytest.approx(decoded, abs=1e-12)
    assert found["acceptance_length"] > 1.2
    shares = [found[f"accepted_{i + 1}"] for i in range(depth)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("queries", [None, 3])
def test_a_draft_trained_in_both_stages_guesses_better_and_is_accepted_more(
    target: Target, answered: tuple[list, list], queries: int | None
) -> None:
    questions, data = answered
    draft = tiny.draft(torch.float32, queries=queries).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    shape = TreeShape(10, 3, 3)
    before = training.acceptance(draft.eval(), target, data)
    accepted_before = accepted(target, draft, questions, shape)
    for weights, self_fed in ((losses.TEXT_STAGE, 0), (losses.MULTIMODAL_STAGE, 1)):
        stage = training.Stage(
            draft.train(), target, weights, self_fed=self_fed, relative_noise=0.1
        )
        batches = training.Batches(data, 4, seed=0)
        history = []
        for step in range(120):
            (batch,) = batches.load(batches(step))
            value, _ = stage(batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            history.append(value.item())
        assert sum(history[-10:]) < 0.7 * sum(history[:10])
    after = training.acceptance(draft.eval(), target, data)
    for step in (1, 2, 3):
        assert after[f"accepted_{step}"] > before[f"accepted_{step}"] + 0.3
    assert accepted(target, draft, questions, shape) > accepted_before + 0.5
