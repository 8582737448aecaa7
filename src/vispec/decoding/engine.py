"""A target and a draft that answer requests: text and images in, text out."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np
from PIL import Image
from transformers import LogitsProcessorList

from vispec.decoding.loop import FinishReason, Job, run
from vispec.decoding.sampling import Chooser, Sampling
from vispec.decoding.stats import Stats, Watch
from vispec.decoding.text import Piece, TextStream
from vispec.decoding.tree import SampledShape, TreeShape
from vispec.drafts.base import Draft
from vispec.errors import SamplingError
from vispec.images import ImageSource
from vispec.messages import Fetch
from vispec.targets.base import Message, Prompt, Target
from vispec.videos import VideoSource

Accept = Literal["keyed", "stochastic"]
DEFAULT_MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Request:
    """One question.

    Args:
        prompt: the question, or a conversation in OpenAI's or Hugging Face's format, whose parts
            bring their images and videos or take the next of these.
        images: paths, bytes, arrays or pictures.
        sampling: how tokens are chosen.
        logits_processor: further Hugging Face logits processors, after the checkpoint's own.
        videos: paths, bytes, or arrays of frames.
        frames: how many frames of each video are shown; by default what the family's own rule
            chooses.
    """

    prompt: str | Sequence[Message]
    images: Sequence[ImageSource] = ()
    sampling: Sampling = field(default_factory=Sampling)
    logits_processor: LogitsProcessorList | None = None
    videos: Sequence[VideoSource] = ()
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise SamplingError("frames", self.frames, "a whole number from 1 on")


@dataclass(frozen=True)
class Result:
    """One answer.

    Attributes:
        text: without special tokens, ending before a stop string.
        token_ids: every new token, the one that ended the answer included.
        finish_reason: `"stop"` (end of sequence or stop string), `"length"` (`max_new_tokens`) or
            `"context"` (the target's context is full).
        stats: what it cost.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: Stats


class Stream(Iterator[Piece]):
    """Pieces of text as they become certain; when exhausted, `results` (and `result`) are there."""

    def __init__(self, answers: Sequence[_Answer], moves: Generator[list[_Answer]]) -> None:
        self._answers, self._moves = answers, moves
        self._pieces, self._results = self._read(), list[Result]()
        self._ended = self._closed = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        try:
            return next(self._pieces)
        except StopIteration:
            self._ended |= not self._closed
            raise

    def _read(self) -> Generator[Piece]:
        for moved in self._moves:
            for answer in moved:
                yield from answer.pieces()
        self._results = [answer.result() for answer in self._answers]

    def _finish(self) -> list[Result]:
        """Generate without making pieces of the text."""
        for _ in self._moves:
            pass
        return [answer.result() for answer in self._answers]

    @property
    def results(self) -> list[Result]:
        """The answers, in the order of the requests.

        Raises:
            RuntimeError: before the last piece was read.
        """
        if not self._ended:
            raise RuntimeError("the stream has not ended; read all its pieces first")
        return self._results

    @property
    def result(self) -> Result:
        return self.results[0]

    def close(self) -> None:
        """Stop generating; unless the stream had ended, there are no results."""
        self._closed = True
        self._pieces.close()
        self._moves.close()


class Engine:
    """Answers requests with a target, and faster with a draft.

    Args:
        target: a wrapped Hugging Face model.
        draft: proposes tokens; None decodes plainly.
        tree: budget of the dynamic trees for keyed acceptance.
        sampled: shape of the sampled trees for stochastic acceptance.
        max_batch: requests decoded at the same time; further ones wait for a free slot.
        fetch: gets images and videos at remote addresses, such as a `messages.Fetcher`; by default
            there is none, and such addresses are refused.
        compile: compile target and draft with `torch.compile`. The first passes then take tens of
            seconds, later ones about half the time. Needs a C++ compiler, and a model that is
            changed no more.

    Raises:
        DraftMismatchError: if the draft does not fit the target.
        SamplingError: for a setting outside its range.
    """

    def __init__(
        self,
        target: Target,
        draft: Draft | None = None,
        *,
        tree: TreeShape | None = None,
        sampled: SampledShape | None = None,
        max_batch: int = 8,
        fetch: Fetch | None = None,
        compile: bool = False,
    ) -> None:
        if isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1:
            raise SamplingError("max_batch", max_batch, "a whole number from 1 on")
        if not isinstance(tree, TreeShape | None):
            raise SamplingError("tree", tree, "a TreeShape, such as TreeShape(30, 4, 8), or None")
        if not isinstance(sampled, SampledShape | None):
            raise SamplingError("sampled", sampled, "a SampledShape or None")
        if draft is not None:
            draft.check(target)
        if compile:
            target.compile_passes()
            if draft is not None:
                draft.compile_passes()
        self.target, self.draft = target, draft
        self.tree, self.sampled = tree or TreeShape(), sampled or SampledShape()
        self.max_batch, self.fetch = max_batch, fetch
        self._watch = Watch(draft, target)

    @overload
    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource] = (),
        *,
        videos: Sequence[VideoSource] = (),
        frames: int | None = None,
        speculate: bool = True,
        accept: Accept = "keyed",
        logits_processor: LogitsProcessorList | None = None,
        **sampling: Any,
    ) -> Result: ...

    @overload
    def generate(
        self,
        prompt: Request,
        *,
        speculate: bool = True,
        accept: Accept = "keyed",
    ) -> Result: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Request],
        *,
        speculate: bool = True,
        accept: Accept = "keyed",
    ) -> list[Result]: ...

    def generate(self, prompt: Any, images: Any = (), **options: Any) -> Any:
        """Answer a question about images, a request, or a list of requests in one batch.

        Args:
            prompt: a question, a conversation, a `Request`, or a list of them.
            images: the pictures of a single question.
            videos: its videos.
            frames: of each video; see `Request`.
            speculate: False decodes plainly.
            accept: `"keyed"` gives the plain loop's own text for a seed; `"stochastic"` is the
                papers' rule, whose text only has the same distribution.
            logits_processor: further Hugging Face logits processors of a single question.
            sampling: the fields of `Sampling`.

        Returns:
            a `Result`, or a list of them in the order of the requests.

        Raises:
            VispecError: for a request that cannot be answered, before any is started.
        """
        results = self.stream(prompt, images, **options)._finish()
        return results if _is_batch(prompt) else results[0]

    def stream(
        self,
        prompt: str | Sequence[Message] | Request | Sequence[Request],
        images: Sequence[ImageSource] | None = (),
        *,
        videos: Sequence[VideoSource] | None = (),
        frames: int | None = None,
        speculate: bool = True,
        accept: Accept = "keyed",
        logits_processor: LogitsProcessorList | None = None,
        **sampling: Any,
    ) -> Stream:
        """As `generate`, but an iterator of `Piece` whose `result` is there at its end."""
        if accept not in ("keyed", "stochastic"):
            raise SamplingError("accept", accept, "'keyed' or 'stochastic'")
        images, videos = _several(images), _several(videos)
        if isinstance(prompt, Request) or _is_batch(prompt):
            if images or videos or frames or sampling or logits_processor is not None:
                raise TypeError("images and sampling of requests belong in the requests")
            alone = isinstance(prompt, Request)
            requests: list[Request] = [prompt] if alone else list(prompt)  # type: ignore[arg-type, list-item]
        else:
            unknown = set(sampling) - Sampling.names()
            if unknown:
                known = ", ".join(sorted(Sampling.names()))
                raise TypeError(f"unknown option {', '.join(sorted(unknown))}; there are: {known}")
            if not isinstance(prompt, str) and not (
                isinstance(prompt, list | tuple) and all(isinstance(p, Mapping) for p in prompt)
            ):
                raise TypeError(
                    f"prompt is {type(prompt).__name__}; it must be a text, a list of messages, a"
                    " Request, or, to ask several things at once, a list of Request"
                )
            wishes = Sampling(**sampling)
            requests = [Request(prompt, images, wishes, logits_processor, videos, frames)]  # type: ignore[arg-type]
        answers = [self._answer(request, index) for index, request in enumerate(requests)]
        return Stream(answers, self._moves(answers, self.draft if speculate else None, accept))

    def _answer(self, request: Request, index: int) -> _Answer:
        """Everything that can go wrong with a request goes wrong here."""
        prompt = self.target.encode(
            request.prompt,
            request.images,
            request.videos,
            fetch=self.fetch,
            frames=request.frames,
        )
        return _Answer(self.target, request, prompt, index)

    def _moves(
        self, answers: list[_Answer], draft: Draft | None, accept: Accept
    ) -> Generator[list[_Answer]]:
        """Run the loop; after every pass, the answers that got longer."""
        sampled = accept == "stochastic" and draft is not None
        groups: list[tuple[TreeShape | SampledShape, list[_Answer]]] = [
            # Greedy choices are the same under both rules, and trees chosen freely are better.
            (self.tree, [a for a in answers if not (sampled and a.job.chooser.sample)]),
            (self.sampled, [a for a in answers if sampled and a.job.chooser.sample]),
        ]
        for shape, group in groups:
            by_job = {id(answer.job): answer for answer in group}
            moves = run(
                self.target,
                draft,
                [answer.job for answer in group],
                shape=shape,
                slots=min(self.max_batch, max(1, len(group))),
                capacity=max((len(a.job.prompt) + a.job.limit for a in group), default=0),
            )
            for moved in moves:
                yield [by_job[id(job)] for job in moved]
        if draft is not None:
            self._watch.add(answer.job.stats for answer in answers)


class _Answer:
    """A request on its way: its job for the loop, and its text."""

    def __init__(self, target: Target, request: Request, prompt: Prompt, index: int) -> None:
        sampling = request.sampling
        config = sampling.over(target.model.generation_config)
        wanted = sampling.max_new_tokens or config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        room = target.context_length - len(prompt)
        limit = min(wanted, room)
        sample = bool(config.do_sample)
        processors = target.processors(config, len(prompt), limit, request.logits_processor)
        self.stream = TextStream(target.tokenizer, sampling.stop, index)
        eos = frozenset() if sampling.ignore_eos else target.eos_token_ids

        def finished(token: int, drafted: bool) -> bool:
            return self.stream.push(token, drafted) or token in eos

        self.job = Job(
            prompt,
            Chooser(processors, sample=sample, seed=sampling.seed),
            limit,
            finished,
            limit_reason="length" if wanted <= room else "context",
            draft_temperature=config.temperature or 1.0 if sample else 1.0,
        )

    def pieces(self) -> list[Piece]:
        """What can be shown by now."""
        pieces = self.stream.pieces()
        if self.job.finish_reason is None:
            return pieces
        self.stream.finish()
        return pieces + self.stream.pieces(last=True)

    def result(self) -> Result:
        job = self.job
        assert job.finish_reason is not None
        self.stream.finish()
        return Result(self.stream.text, job.token_ids, job.finish_reason, job.stats)


def _several(shown: Any) -> Sequence[Any]:
    """A list of what is shown, which may be given as one thing or as nothing."""
    if shown is None:
        return ()
    single = isinstance(shown, str | os.PathLike | bytes | Image.Image | np.ndarray)
    return [shown] if single else shown


def _is_batch(prompt: object) -> bool:
    return isinstance(prompt, list | tuple) and all(isinstance(p, Request) for p in prompt)


__all__ = ["Accept", "Engine", "ImageSource", "Request", "Result", "Stream"]
