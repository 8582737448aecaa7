"""What the target itself says next: logits processing, then a choice that can be repeated.

Noise is a function of numbers, not of a generator's history: the token at output position 7 of a
request with seed 3 is drawn with the same noise whatever tree, batch or draft led to it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process

from vispec.errors import SamplingError

_STATELESS = (
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
)
"""Processors that look at nothing but the row of logits, so that requests can share a call."""


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen; `None` means what the checkpoint's configuration says.

    Args:
        max_new_tokens: upper bound of the answer's length.
        temperature: 0 is greedy.
        top_k: sample among the `top_k` likeliest tokens; 0 turns it off.
        top_p: sample among the likeliest tokens that hold this share of the probability.
        min_p: sample among tokens at least `min_p` times as likely as the likeliest.
        repetition_penalty: divides the (positive) logits of tokens already seen; 1 turns it off.
        seed: of the sampling noise.
        stop: the answer ends before the first of these strings.
        ignore_eos: go on past end-of-sequence tokens (measurements of long texts).

    Raises:
        SamplingError: for a value outside its range.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Collection) or not all(isinstance(s, str) and s for s in stop):
            raise SamplingError("stop", stop, "non-empty strings")
        object.__setattr__(self, "stop", tuple(stop))
        if not isinstance(self.ignore_eos, bool):
            raise SamplingError("ignore_eos", self.ignore_eos, "True or False")
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if not whole or not 0 <= self.seed < 2**63:
            raise SamplingError("seed", self.seed, "a whole number from 0 to 2**63 - 1")
        _check("max_new_tokens", self.max_new_tokens, 1, math.inf, "a whole number of at least 1")
        _check("temperature", self.temperature, 0, 1e6, "0 (greedy) or a positive number")
        _check("top_k", self.top_k, 0, math.inf, "0 (off) or a positive whole number")
        _check("top_p", self.top_p, 0, 1, "above 0 and at most 1", open_low=True)
        _check("min_p", self.min_p, 0, 1, "from 0 to 1")
        _check(
            "repetition_penalty",
            self.repetition_penalty,
            0,
            math.inf,
            "a positive number (1 is off)",
            open_low=True,
        )

    @classmethod
    def names(cls) -> frozenset[str]:
        return frozenset(f.name for f in fields(cls))

    def over(self, checkpoint: GenerationConfig) -> GenerationConfig:
        """A copy of the checkpoint's generation configuration with this request's wishes in it.

        Raises:
            SamplingError: if the result asks for something other than one sampled or greedy text.
        """
        config = copy.deepcopy(checkpoint)
        if self.temperature is not None:
            config.do_sample = self.temperature > 0
            config.temperature = float(self.temperature) if self.temperature > 0 else None
        if self.top_k is not None:
            config.top_k = self.top_k
        for name in ("top_p", "min_p", "repetition_penalty"):
            if getattr(self, name) is not None:
                setattr(config, name, float(getattr(self, name)))  # transformers refuses ints
        if (config.num_beams or 1) > 1:
            raise SamplingError("num_beams", config.num_beams, "1: beam search is not speculative")
        return config


def _check(
    name: str,
    value: float | None,
    low: float,
    high: float,
    allowed: str,
    *,
    open_low: bool = False,
) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in ("max_new_tokens", "top_k"):
        number = number and isinstance(value, int)
    inside = number and low <= value <= high and value != math.inf
    if not inside or (open_low and value == low):
        raise SamplingError(name, value, allowed)


class Chooser:
    """One request's processed logits, and the tokens drawn from them.

    Args:
        processors: Hugging Face logits processors in the order they apply, warpers included.
        sample: draw a token; otherwise take the likeliest.
        seed: of the noise.
    """

    def __init__(self, processors: LogitsProcessorList, *, sample: bool, seed: int) -> None:
        # A processor may keep state from call to call; it must not be shared by requests.
        self.processors = copy.deepcopy(processors)
        self.sample = sample
        self.seed = seed
        self.reads_text = any(reads_text(p) for p in processors)
        self.key = None if self.reads_text else (sample, *map(_signature, processors))
        self.scales = all(
            type(processor) is logits_process.TemperatureLogitsWarper for processor in processors
        )
        """Whether it does no more to a row than divide it."""

    def process(self, logits: Tensor, text: Tensor | None) -> Tensor:
        """Apply the processors to rows `[m, V]`; `text [m, t]` are the tokens before them."""
        if text is None:
            text = torch.empty(logits.shape[0], 0, dtype=torch.long, device=logits.device)
        for processor in self.processors:
            logits = processor(text, logits)
        return logits


def reads_text(processor: object) -> bool:
    """Whether a processor looks at more than a row of logits."""
    return type(processor) not in _STATELESS


def _signature(processor: object) -> tuple[object, ...]:
    return (type(processor).__name__, *(repr(v) for _, v in sorted(vars(processor).items())))


def process_rows(
    choosers: Sequence[Chooser], logits: Tensor, texts: Sequence[Tensor | None]
) -> Tensor:
    """Process one row a request, sharing a call wherever requests ask for the same.

    Args:
        choosers: `b` of them.
        logits: `[b, V]`.
        texts: the tokens `[t]` before each row, or None for a row that no processor need see.

    Returns:
        `[b, V]` float32 scores, as Hugging Face's own sampling loop computes them.
    """
    logits = logits.float()
    keys = {chooser.key for chooser in choosers}
    if len(keys) == 1 and None not in keys:
        return choosers[0].process(logits, None) if choosers[0].processors else logits
    rows = logits.clone()
    for row, (chooser, text) in enumerate(zip(choosers, texts, strict=True)):
        if not chooser.reads_text:
            rows[row : row + 1] = chooser.process(logits[row : row + 1], None)
        elif text is not None:
            rows[row : row + 1] = chooser.process(logits[row : row + 1], text[None])
    return rows


def scaled(choosers: Sequence[Chooser], logits: Tensor) -> Tensor:
    """What `process_rows` makes of every node's logits, where all choosers scale alone.

    Args:
        choosers: `b` of them.
        logits: `[b, n, V]`.
    """
    logits = logits.float()
    if not any(chooser.processors for chooser in choosers):
        return logits
    if len({chooser.key for chooser in choosers}) == 1:
        return choosers[0].process(logits.flatten(0, 1), None).view_as(logits)
    return torch.stack(
        [chooser.process(rows, None) for chooser, rows in zip(choosers, logits, strict=True)]
    )


# --- Noise ------------------------------------------------------------------------------------


def _wrap(value: int) -> int:
    """A 64-bit pattern as the signed integer that torch stores."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _wrap(0x9E3779B97F4A7C15)
_MIX_1 = _wrap(0xBF58476D1CE4E5B9)
_MIX_2 = _wrap(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014), on int64 with wrap-around."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(*keys: Tensor) -> Tensor:
    """Uniform numbers in the open interval (0, 1), a function of integer keys alone.

    Args:
        keys: int64 tensors that broadcast together; each one is hashed in turn.

    Returns:
        float64, of the broadcast shape.
    """
    state: Tensor | None = None
    for key in keys:
        key = (key.long() + 1) * _GOLDEN
        state = _mix(key) if state is None else _mix(state ^ key)
    assert state is not None
    bits = (state >> 11) & ((1 << 53) - 1)
    # 52 bits and a half step: the largest value is still below 1 in float64.
    return ((bits >> 1).double() + 0.5) * 2.0**-52


def gumbel(*keys: Tensor) -> Tensor:
    """Standard Gumbel noise, keyed as `uniform` is."""
    return -torch.log(-torch.log(uniform(*keys)))


class KeyedNoise:
    """The noise that draws a sampled tree's children, keyed by where the cycle starts.

    Args:
        seed: `[b]` request seeds.
        position: `[b]` output position of the token behind the root; no two cycles share it.
        temperature: `[b]`, what the draft's logits are divided by.
    """

    def __init__(self, seed: Tensor, position: Tensor, temperature: Tensor) -> None:
        self.seed, self.position, self.temperature = seed, position, temperature

    def gumbel(self, first: int, nodes: int, vocabulary: int) -> Tensor:
        """`[b, nodes, vocabulary]` for the tree's nodes from `first` on."""
        device = self.seed.device
        node = torch.arange(first, first + nodes, device=device)[None, :, None]
        column = torch.arange(vocabulary, device=device)
        three = torch.full_like(node, 3)
        return gumbel(self.seed[:, None, None], self.position[:, None, None], node, three, column)
