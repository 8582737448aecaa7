"""Families that show an image in several pieces, with text between them.

A piece is a span of placeholders: a tile of a large image, or a frame behind its time stamp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vispec.targets.base import Target
from vispec.targets.visual import spans

Span = tuple[int, int]
"""First position of a piece, and the one behind it."""


class SpanTarget(Target):
    """Video-LLaVA and InternVL: one span is one image, or one video.

    Of InternVL's videos each frame is a span, behind "Frame1: ", "Frame2: " and so on.
    """

    model_types: tuple[str, ...] = ("video_llava", "internvl")
    frame = re.compile(r"\bFrame\d+: ")
    """What stands before a frame of a video, and `first` before its first alone."""
    first = re.compile(r"\bFrame1: ")

    def image_index(self, inputs: Mapping[str, Any], shown: Mapping[str, Any]) -> Tensor:
        ids = inputs["input_ids"][0]
        index = torch.full_like(ids, -1)
        if not shown:
            return index
        tokens, found = ids.tolist(), spans(self.placeholders(inputs)[0])
        image, joined = -1, False
        for number, (start, end) in enumerate(found):
            before = tokens[found[number - 1][1] if number else 0 : start]
            if not (joined or (number and self._next_frame(before))):
                image += 1
            index[start:end] = image
            joined = not self.ends_image(tokens, found, number)
        return index

    def ends_image(self, tokens: Sequence[int], found: Sequence[Span], number: int) -> bool:
        """Whether span `number` is the last tile of its image."""
        return True

    def _next_frame(self, between: Sequence[int]) -> bool:
        if self.tokenizer is None:
            return False
        said = self.tokenizer.decode(between)
        return bool(self.frame.search(said)) and not self.first.search(said)


class GlobalTileTarget(SpanTarget):
    """Idefics3 and SmolVLM: rows of tiles, and behind them the image as a whole.

    The token before an image's last tile says that it is the whole; the last one of the prompt
    shows which token that is. Frames of a video are images behind "Frame from 00:01:", the first
    also behind a sentence about "the following series of" frames.
    """

    model_types = ("idefics3", "smolvlm")
    frame = re.compile(r"\bFrame from [\d:]+:")
    first = re.compile(r"\bthe following series of\b")

    def ends_image(self, tokens: Sequence[int], found: Sequence[Span], number: int) -> bool:
        return tokens[found[number][0] - 1] == tokens[found[-1][0] - 1]


class ClosedTileTarget(SpanTarget):
    """LFM2-VL: tiles behind marks of their own, and a token that closes the image."""

    model_types = ("lfm2_vl",)

    def ends_image(self, tokens: Sequence[int], found: Sequence[Span], number: int) -> bool:
        behind = [tokens[end] if end < len(tokens) else None for _, end in found]
        return behind[number] == behind[-1]
