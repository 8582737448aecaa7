"""Speculative decoding from inside Hugging Face's own `generate`.

    model.generate(**inputs, custom_generate=vispec.speculative("path/to/draft"))

`generate` prepares the configuration, the logits processors and the stopping criteria as always;
only its decoding loop is another one. Two of its arguments never reach such a loop: instead of
`streamer=…` give `stream_to=…`, and instead of `stop_strings=…` with `tokenizer=…` give
`stopping_criteria=[StopStringCriteria(tokenizer, …)]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput

from vispec.decoding.loop import Job, run
from vispec.decoding.sampling import Chooser, reads_text
from vispec.decoding.stats import Watch
from vispec.decoding.tree import TreeShape
from vispec.drafts.base import Draft
from vispec.errors import SamplingError
from vispec.loading_drafts import load_draft, placed
from vispec.targets import Target, wrap
from vispec.targets.batches import split_batch
from vispec.targets.hooks import CACHE_NAMES

_RECORDS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def speculative(
    draft: str | os.PathLike[str] | Draft | None,
    tree: TreeShape | None = None,
    *,
    max_batch: int = 8,
    allow_pickle: bool = False,
) -> Callable[..., Tensor | GenerateDecoderOnlyOutput]:
    """A decoding loop for `generate(custom_generate=…)`.

    Greedy output is `generate`'s own. Sampled output has its distribution and is repeatable under
    `torch.manual_seed`, but is another sample than the plain call's.

    Args:
        draft: a folder, a hub name, or a draft object; None decodes plainly.
        tree: budget of the draft trees; by default what the draft's checkpoint recommends.
        max_batch: rows decoded at the same time.
        allow_pickle: read a draft's pickled weights where there are no safetensors; opening them
            can run code.

    Returns:
        what to pass as `custom_generate`.
    """
    loaded: dict[Hashable, tuple[Target, Draft | None, TreeShape, Watch]] = {}

    def prepare(model: PreTrainedModel) -> tuple[Target, Draft | None, TreeShape, Watch]:
        key = id(model), model.dtype, model.device
        if key not in loaded:
            target = wrap(model, None)
            advice, proposer = None, draft
            if isinstance(draft, str | os.PathLike):
                proposer, advice = load_draft(draft, target, pickled=allow_pickle)
            elif draft is not None:
                proposer = placed(draft, target)
            assert not isinstance(proposer, str | os.PathLike)
            if proposer is not None:
                proposer.check(target)
            shape = tree or advice or TreeShape()
            loaded[key] = target, proposer, shape, Watch(proposer, target)
        return loaded[key]

    def decode(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        stream_to: Any = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        _refuse(generation_config, model_kwargs, stream_to, len(input_ids))
        target, proposer, shape, watch = prepare(model)
        sample = bool(generation_config.do_sample)
        seeds = torch.randint(2**62, (len(input_ids),)).tolist() if sample else [0] * len(input_ids)
        limit = generation_config.max_length - input_ids.shape[1]
        rows = zip(
            input_ids.tolist(), split_batch(target, input_ids, model_kwargs), seeds, strict=True
        )
        jobs = []
        for index, (row, inputs, seed) in enumerate(rows):
            processors = _of_row(logits_processor, index, len(input_ids))
            chooser = Chooser(processors, sample=sample, seed=seed)
            jobs.append(_job(target, row, inputs, chooser, stopping_criteria, limit))
        moves = run(
            target,
            proposer,
            jobs,
            shape=shape,
            slots=min(max_batch, len(jobs)),
            capacity=input_ids.shape[1] + limit,
        )
        told = 0
        if stream_to is not None:
            stream_to.put(input_ids.cpu())
        for _ in moves:
            if stream_to is not None:
                stream_to.put(torch.tensor(jobs[0].token_ids[told:]))
                told = len(jobs[0].token_ids)
        if stream_to is not None:
            stream_to.end()
        if proposer is not None:
            watch.add(job.stats for job in jobs)
        longest = max(len(job.token_ids) for job in jobs)
        padding = generation_config._pad_token_tensor  # an end of sequence where there is no other
        pad = 0 if padding is None else int(padding)
        answers = [job.token_ids + [pad] * (longest - len(job.token_ids)) for job in jobs]
        sequences = torch.cat([input_ids, torch.tensor(answers, device=input_ids.device)], 1)
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
        return sequences

    return decode


def _job(
    target: Target,
    row: list[int],
    inputs: dict[str, Any],
    chooser: Chooser,
    criteria: StoppingCriteriaList,
    limit: int,
) -> Job:
    text = list(row)

    def finished(token: int, drafted: bool) -> bool:
        text.append(token)
        return bool(criteria(torch.tensor([text], device=target.device), None)[0])  # type: ignore[arg-type]

    return Job(target.prompt(inputs), chooser, limit, finished, text=row)


class _OfRow(LogitsProcessor):
    """A batch's processor for one of its rows: it may know each row's padding, prompt or number."""

    def __init__(self, processor: LogitsProcessor, row: int, rows: int) -> None:
        self.processor, self.row, self.rows = processor, row, rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        everywhere = input_ids.repeat(self.rows, 1), scores.repeat(self.rows, 1)
        return self.processor(*everywhere)[self.row : self.row + 1]  # type: ignore[arg-type]


def _of_row(processors: LogitsProcessorList, row: int, rows: int) -> LogitsProcessorList:
    if rows == 1:
        return processors
    return LogitsProcessorList(_OfRow(p, row, rows) if reads_text(p) else p for p in processors)


def _refuse(
    config: GenerationConfig, model_kwargs: dict[str, Any], stream_to: Any, rows: int
) -> None:
    """Name what this loop does not do, rather than do something else."""
    if (config.num_beams or 1) > 1:
        raise SamplingError("num_beams", config.num_beams, "1: beam search is not speculative")
    for name in _RECORDS:
        if getattr(config, name, False):
            raise SamplingError(name, True, "off: only the sequences are returned")
    cache = next((model_kwargs[name] for name in CACHE_NAMES if model_kwargs.get(name)), None)
    if cache is not None and cache.get_seq_length():
        raise SamplingError("past_key_values", type(cache).__name__, "empty at the start")
    if model_kwargs.get("inputs_embeds") is not None:
        raise SamplingError("inputs_embeds", "given", "absent: the loop starts from input_ids")
    if stream_to is not None and rows > 1:
        raise SamplingError("stream_to", type(stream_to).__name__, "absent for several rows")
