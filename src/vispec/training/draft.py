"""Training a sequential draft on what the target said.

Row `p` of the draft pairs the target's feature at position `p` with the token at `p + 1` and
guesses the feature at `p + 1`. In drafting, the first step behind accepted text reads true
features, and each further one the guess before it. *Self-fed* passes are those further steps,
behind every position of an answer at once: what a row of pass `j` sees is what it would see as the
`j`-th step of a chain, true rows up to where the chain began and its own steps since (the
training-time test of EAGLE-3, arXiv 2503.01840, section 3.1). ViSpec (arXiv 2509.15235, section
3.4) takes one such pass, in which its code puts guesses in the place of all true features but the
first, the prompt's among them; here chains begin behind true ones, as they do in drafting. So a
draft learns to go on from its own guesses, and cannot lean on what a true feature knows of the
image.

Shapes: `b` samples, `t` positions, `n` rows, `a` rows at an answer's positions, `d` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vispec.drafts.reading import Seen, own_words, placed
from vispec.drafts.sequential import SequentialDraft
from vispec.targets.base import Target
from vispec.training.chains import walked
from vispec.training.features import Sample
from vispec.training.losses import Guess, Truth, accuracy, weighted

LOGITS = 1 << 27
"""How many logits of a pass there are at once, at most: half a gigabyte of them."""


class Batches:
    """Which samples every step takes: every epoch a new order, its samples each once.

    That depends on the step alone. Samples are read when they are needed, so that of several
    processes each reads its own.

    Args:
        samples: the data.
        size: samples a batch, at most.
        seed: of the order.
        positions: of what is run at once, padding among them; a longer batch is taken apart.
    """

    def __init__(
        self, samples: Sequence[Sample], size: int, seed: int, positions: int = 8192
    ) -> None:
        self.samples, self.size, self.seed, self.positions = samples, size, seed, positions
        self._order: tuple[int, list[int]] = (-1, [])

    def __call__(self, step: int) -> list[int]:
        """Places of the samples of a step."""
        epoch, place = divmod(step, max(1, -(-len(self.samples) // self.size)))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.samples), generator=generator).tolist()
            self._order = epoch, order
        return self._order[1][place * self.size : (place + 1) * self.size]

    def load(self, places: Sequence[int]) -> list[list[Sample]]:
        """These samples, in as few groups as fit; a sample that is too long is one by itself."""
        samples = [self.samples[place] for place in places]
        longest = max((len(sample.features) for sample in samples), default=0)
        if len(samples) * longest <= self.positions:
            return [samples]
        groups: list[list[Sample]] = []
        for sample in sorted(samples, key=lambda sample: -len(sample.features)):
            room = groups and (len(groups[-1]) + 1) * len(groups[-1][0].features) <= self.positions
            if room:
                groups[-1].append(sample)
            else:
                groups.append([sample])
        return groups


Part = TypeVar("Part")


def split(batch: Sequence[Part], parts: int) -> list[list[Part]]:
    """A batch taken apart, into fewer parts where there are fewer samples."""
    return [list(batch[i::parts]) for i in range(min(parts, len(batch)))]


def matrices(module: nn.Module) -> Callable[[str, nn.Parameter], bool]:
    """What tells a `Trainer` the weights of linear layers, which Muon may train, by their names.

    Not those of heads: their rows are tokens, about most of which a batch has nothing to say.
    """
    layers = (name for name, part in module.named_modules() if isinstance(part, nn.Linear))
    names = frozenset(f"{name}.weight" for name in layers if not name.endswith("lm_head"))
    return lambda name, _: name in names


class Beside:
    """A target and its LM head, which a module that holds this does not train, copy or keep."""

    def __init__(self, target: Target) -> None:
        self.target, self.head = target, frozen(target.head)

    def __deepcopy__(self, memo: Any) -> Beside:
        return self


class Stage(nn.Module):
    """A draft with what one stage of its training asks of it.

    Args:
        draft: what learns.
        target: whose LM head reads features; it does not learn.
        losses: weights of `vispec.training.losses.LOSSES`, summed at every position of every pass.
        self_fed: passes on the draft's own guesses after the first on true features.
        noise, relative_noise: uniform noise on true features; see `StageRecipe`.
        decay: weight of each pass relative to the one before.
    """

    def __init__(
        self,
        draft: SequentialDraft,
        target: Target,
        losses: Mapping[str, float],
        *,
        self_fed: int = 0,
        noise: float = 0.0,
        relative_noise: float = 0.0,
        decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.draft, self.loss = draft, weighted(losses)
        self.self_fed, self.decay = self_fed, decay
        self.noise = noise, relative_noise
        self._beside = Beside(target)

    @staticmethod
    def weight(samples: Sequence[Sample]) -> int:
        """How many positions the mean loss of a batch is taken over."""
        return sum(len(sample.tokens) for sample in samples)

    def forward(self, samples: Sequence[Sample]) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over all answer positions, and the share of tokens guessed right."""
        asked = _Asked.of(samples, self.draft)
        if self.training and any(self.noise):
            asked = replace(asked, seen=_disturbed(asked.seen, *self.noise))
        passes = unroll(self.draft, asked, self.self_fed)
        work = partial(self._block, passes.guesses, asked)
        total, right = in_blocks(work, asked.rows, self._beside.head.out_features)
        if passes.loss is not None:
            # Weighed as the whole is, by answers, so that it does not matter how batches are split.
            count = asked.real.sum(1)
            total = total + (passes.loss * count).sum() / count.sum()
        return total, accuracies(right)

    def _block(
        self, guesses: Sequence[Tensor], asked: _Asked, block: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of some positions `[m, 2]`: their mean loss, and of each pass rows right and in all.

        Behind an answer's first positions there is no chain that is long; as these come first,
        every pass is about the positions from one on.
        """
        target, head = self._beside.target, self._beside.head
        here = block.to(asked.hidden.device)
        hidden = asked.hidden[here[:, 0], here[:, 1]]
        with torch.no_grad():
            true_logits = target.logits(hidden.to(target.dtype)).float()
        if self.draft.token_map is not None:
            # Of its own tokens, as if there were no others.
            true_logits = true_logits[:, self.draft.token_map]
        truth = Truth(true_logits)
        total, found = hidden.new_zeros(()), torch.zeros(2, len(guesses), device=hidden.device)
        scale = sum(self.decay**turn for turn in range(self.self_fed + 1))
        for turn, guessed in enumerate(guesses):
            first = int((block[:, 1] < turn).sum())
            count = len(block) - first
            if not count:
                continue
            feature = guessed[here[first:, 0], here[first:, 1]]
            logits, truth_there = self.draft.logits(feature, head).float(), truth.behind(first)
            guess = Guess(feature.float(), hidden[first:].float(), logits, truth_there)
            # A mean over all of them leaves every batch its due weight.
            total = total + self.decay**turn / scale * count / len(block) * self.loss(guess)
            found[0, turn] = accuracy(guess) * count
            found[1, turn] = count
        return total, found


def in_blocks(
    work: Callable[[Tensor], tuple[Tensor, Tensor]], rows: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """The mean loss of rows and the sum of what is counted of them, so many rows at a time.

    Logits of a block are worked out again for its gradients rather than kept.

    Args:
        work: gives both for some rows.
        rows: `[m, …]`.
        width: logits of a row.
    """
    blocks = rows.split(block_rows(width))
    losses, counts = [], []
    for block in blocks:
        part = partial(work, block)
        loss, count = checkpoint(part, use_reentrant=False) if len(blocks) > 1 else part()
        losses.append(loss * (len(block) / len(rows)))
        counts.append(count)
    return torch.stack(losses).sum(), torch.stack(counts).sum(0)


def block_rows(width: int) -> int:
    """How many rows are worked on at once, of so many logits each."""
    return max(1, LOGITS // width)


def accuracies(right: Tensor) -> dict[str, float]:
    """By step, the share of rows guessed right, from how many were right and in all `[2, k]`."""
    shares = (right[0] / right[1].clamp(min=1)).tolist()
    return {f"accuracy_{k + 1}": share for k, share in enumerate(shares) if right[1, k]}


@dataclass(frozen=True)
class _Asked:
    """A batch of samples, padded behind.

    Attributes:
        seen: what the draft reads of each, in the numbers that it is kept in.
        rows: `[m, 2]` all positions there are, every answer's first ones before the second ones;
            on the CPU, so that a device is not asked for them.
        real: `[b, a]`, which positions there are.
        place: `[a]`, counted from an answer's first.
        words: `[b, a, d]` embeddings at the answer's positions.
        hidden: `[b, a, d]` true features there.
        tokens: `[b, a]`, what was said behind them.
        positions: what the rotary embedding saw, of each sample.
    """

    seen: list[Seen]
    rows: Tensor
    real: Tensor
    place: Tensor
    words: Tensor
    hidden: Tensor
    tokens: Tensor
    positions: list[Tensor]

    @classmethod
    def of(cls, samples: Sequence[Sample], draft: SequentialDraft) -> _Asked:
        device, dtype = next(draft.parameters()).device, draft.dtype
        seen, words = [], []
        for sample in samples:
            embeddings, index = sample.embeddings.to(device), sample.image_index.to(device)
            if draft.embed_tokens is not None:
                own = draft.embed_tokens(sample.ids.to(device))
                embeddings = own_words(own, embeddings, index)
            seen.append(
                Seen(embeddings, sample.features[:-1].to(device), index, sample.answer_start)
            )
            words.append(embeddings[sample.answer_start :])
        lengths = [len(sample.tokens) for sample in samples]
        place = torch.arange(max(lengths), device=device)
        rows = torch.stack(placed(torch.tensor(lengths)), 1)
        return cls(
            seen,
            rows[rows[:, 1].argsort(stable=True)],
            place < torch.tensor(lengths, device=device)[:, None],
            place,
            padded(words).to(dtype),
            padded([s.hidden[s.answer_start :].to(device) for s in samples]).to(dtype),
            padded([sample.tokens.to(device) for sample in samples], -1),
            [sample.positions.to(device) for sample in samples],
        )


def padded(parts: Sequence[Tensor], fill: int = 0) -> Tensor:
    """`[b, n, …]` of `b` parts `[n, …]`, padded behind; in few kernels however many there are."""
    flat, lengths = torch.cat(list(parts)), [len(part) for part in parts]
    row, place = (index.to(flat.device) for index in placed(torch.tensor(lengths)))
    out = flat.new_full((len(parts), max(lengths), *flat.shape[1:]), fill)
    return out.index_put((row, place), flat)


@dataclass(frozen=True)
class Passes:
    """What a draft guessed.

    Attributes:
        guesses: of every pass, features `[b, a, d]` at the answer's positions; of pass `j` the
            first `j` positions mean nothing.
        loss: the adapter's own, of each text.
    """

    guesses: list[Tensor]
    loss: Tensor | None


class _Keys:
    """Keys and values of all passes so far, given to attention as a cache gives them."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.kept:
            before = self.kept[layer]
            key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        self.kept[layer] = key, value
        return key, value


def unroll(draft: SequentialDraft, asked: _Asked, self_fed: int) -> Passes:
    """Guess behind every position of every answer, and on from there `self_fed` times."""
    reading = draft.read(asked.seen)
    rows = reading.rows
    hidden = padded([r.hidden for r in rows])
    places = padded([r.position for r in rows])
    if draft.follows_positions:
        seen_at = zip(asked.positions, rows, strict=True)
        own = [spot.expand(3, -1)[:, r.position].T for spot, r in seen_at]
        places = padded(own).movedim(-1, 0)
    keys = _Keys()
    # Padding comes last, where a causal mask hides it from every real row.
    out = draft(hidden, places, cache=keys)  # type: ignore[arg-type]
    # Rows at the answer's positions are a text's last ones.
    count = asked.real.sum(1)
    length = torch.tensor([len(r.position) for r in rows], device=count.device)
    first = length - count
    n, a = hidden.shape[1], len(asked.place)
    at = (first[:, None] + asked.place).clamp(max=n - 1)
    guess = out.gather(1, at[..., None].expand(-1, -1, out.shape[-1]))
    guesses = [guess]
    spots = places.gather(-1, at.expand(*places.shape[:-1], a))
    globals_ = torch.stack([r.globals for r in rows])[:, None]
    true_row = torch.arange(n, device=at.device)
    itself = torch.eye(a, dtype=torch.bool, device=at.device)
    for turn in range(1, self_fed + 1):
        # Row r goes on from what the pass before guessed at r - 1.
        x = draft.combine(asked.words, guess.roll(1, 1), globals_)
        seen_rows = true_row <= (at - turn)[..., None]
        steps = [itself.roll(turn - i, 0).expand(len(at), -1, -1) for i in range(1, turn)]
        mask = torch.cat([seen_rows, *steps, itself.expand(len(at), -1, -1)], 2)
        guess = draft(x, spots, mask[:, None], keys)  # type: ignore[arg-type]
        guesses.append(guess)
    return Passes(guesses, reading.loss)


@torch.no_grad()
def acceptance(
    draft: SequentialDraft, target: Target, samples: Sequence[Sample], depth: int = 4
) -> dict[str, float]:
    """What greedy chains would have accepted of answers; see `vispec.training.chains`.

    Args:
        draft: not training.
        depth: of the chains.
    """
    passes = unroll(draft, asked := _Asked.of(samples, draft), depth - 1)
    head = frozen(target.head)
    right = torch.zeros(*asked.real.shape, depth, dtype=torch.bool)
    for turn, guesses in enumerate(passes.guesses):
        blocks = guesses.flatten(0, 1).split(block_rows(head.out_features))
        token = torch.cat([draft.logits(block, head).argmax(-1) for block in blocks])
        token = token.view_as(asked.tokens)
        token = token if draft.token_map is None else draft.token_map[token]
        hit = ((token == asked.tokens) & asked.real).cpu()
        # The chain that began `turn` rows before.
        right[:, : hit.shape[1] - turn, turn] = hit[:, turn:]
    return walked(right, asked.tokens.cpu(), asked.real.cpu())


def _disturbed(seen: Sequence[Seen], noise: float, relative: float) -> list[Seen]:
    """With noise on what is read of the target."""
    lengths = [len(one.features) for one in seen]
    flat = torch.cat([one.features for one in seen]).float()
    owner = placed(torch.tensor(lengths))[0].to(flat.device)
    length = torch.tensor(lengths, device=flat.device, dtype=flat.dtype)
    count = length * flat.shape[1]

    def summed(numbers: Tensor) -> Tensor:
        return torch.zeros_like(length).index_add(0, owner, numbers.sum(1))

    mean = summed(flat) / count
    spread = (summed((flat - mean[owner, None]) ** 2) / (count - 1).clamp(min=1)).sqrt()
    reach = noise * 512 / length.clamp(min=1) + 2 * relative * spread
    flat = flat + reach[owner, None] * (torch.rand_like(flat) - 0.5)
    found = flat.split(lengths)
    return [replace(one, features=part) for one, part in zip(seen, found, strict=True)]


class FrozenHead(nn.Linear):
    """The weights of an LM head, for which no gradients are worked out, in their own numbers."""

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


def frozen(head: nn.Linear) -> FrozenHead:
    """The same weights, none of them copied."""
    same = FrozenHead(head.in_features, head.out_features, head.bias is not None, device="meta")
    same.weight = nn.Parameter(head.weight.detach(), requires_grad=False)
    if head.bias is not None:
        same.bias = nn.Parameter(head.bias.detach(), requires_grad=False)
    return same
