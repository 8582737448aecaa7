"""Videos as frames, those that a family wants to see."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from transformers.video_utils import VideoMetadata

from vispec.errors import VideoError

VideoSource = str | os.PathLike[str] | bytes | np.ndarray
Choose = Callable[[VideoMetadata], Sequence[int]]
"""Which frames are wanted, of a video with these facts."""

MAX_PIXELS = 1_600_000_000
"""Of all wanted frames together: as many full-HD ones as Qwen's own rule takes at most, 768."""


@dataclass(frozen=True)
class Video:
    """Wanted frames `[n, height, width, 3]` of uint8, and where they come from."""

    frames: np.ndarray[Any, Any]
    metadata: VideoMetadata


def load_video(source: VideoSource, choose: Choose, max_pixels: int = MAX_PIXELS) -> Video:
    """Decode the frames of a video that `choose` wants.

    Args:
        source: a path, the bytes of a file, or frames `[n, height, width, 3]` of uint8, which
            count as 24 a second.
        choose: a family's own rule.
        max_pixels: the most pixels to decode.

    Raises:
        VideoError: if there is no such file, it is no video, is damaged, or has too many pixels.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, choose)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"the {len(source)} bytes given", choose, max_pixels)
    if isinstance(source, str | os.PathLike):
        name = f"'{os.fspath(source)}'"
        if not os.path.isfile(source):
            kind = "it is a folder" if os.path.isdir(source) else "there is no such file"
            raise VideoError(name, kind, f"check the path (now in '{os.getcwd()}')")
        return _decode(os.fspath(source), name, choose, max_pixels)
    raise VideoError(
        f"an object of type {type(source).__name__}",
        "there is no way to decode it",
        "give a path, bytes or an array of frames",
    )


def _from_array(frames: np.ndarray[Any, Any], choose: Choose) -> Video:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise VideoError(
            f"an array of shape {list(frames.shape)} and type {frames.dtype}",
            "it is not laid out as a video",
            "give [frames, height, width, 3] of uint8",
        )
    facts = _facts(len(frames), 24.0, frames.shape[1], frames.shape[2])
    wanted = _wanted(choose, facts)
    return Video(frames[wanted], facts)


def _decode(source: Any, name: str, choose: Choose, max_pixels: int) -> Video:
    try:
        import av
    except ImportError as error:
        raise VideoError(
            name,
            "decoding videos needs PyAV, which is not installed",
            "pip install 'vispec[video]'",
        ) from error
    try:
        with av.open(source) as container:
            if not container.streams.video:
                raise VideoError(name, "it has no video in it", "give a video file")
            stream = container.streams.video[0]
            # What the container claims is often wrong: a video ends where no more frames come.
            shown: list[Fraction | None] = []
            height = width = 0
            for frame in container.decode(stream):
                if not shown:
                    height, width = frame.height, frame.width
                shown.append(None if frame.pts is None else frame.pts * Fraction(frame.time_base))
            if not shown:
                raise VideoError(name, "it has no frames", "give a video with some")
            rate = _rate(shown) or float(stream.average_rate or stream.guessed_rate or 24)
            facts = _facts(len(shown), rate, height, width)
            wanted = _wanted(choose, facts)
            if len(wanted) * height * width > max_pixels:
                raise VideoError(
                    name,
                    f"its {len(wanted)} frames of {width} x {height} have more than"
                    f" {max_pixels / 1e6:,.0f} million pixels",
                    "scale it down first",
                )
        with av.open(_again(source)) as container:
            frames, needed = {}, set(wanted)
            for index, frame in enumerate(container.decode(video=0)):
                if index in needed:
                    # A stream may change its size on the way.
                    frames[index] = frame.reformat(width, height, "rgb24").to_ndarray()
    except VideoError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            name, f"it cannot be decoded ({error})", "give an MP4, WebM, MKV, MOV or GIF file"
        ) from error
    return Video(np.stack([frames[index] for index in wanted]), facts)


def _rate(shown: Sequence[Fraction | None]) -> float | None:
    """Frames a second, by when each is shown; None where that is not said.

    The last one counts as long as the mean of the others: what the header says of it may be cut
    short.
    """
    times = [time for time in shown if time is not None]
    if len(times) < max(len(shown), 2) or max(times) == min(times):
        return None
    first, last = min(times), max(times)
    end = last + (last - first) / (len(times) - 1)
    return len(times) / (float(end) - float(first))


def _again(source: Any) -> Any:
    if isinstance(source, io.BytesIO):
        source.seek(0)
    return source


def _facts(count: int, rate: float, height: int, width: int) -> VideoMetadata:
    return VideoMetadata(
        total_num_frames=count,
        fps=rate,
        duration=count / rate,
        height=height,
        width=width,
        video_backend="pyav",
    )


def _wanted(choose: Choose, facts: VideoMetadata) -> list[int]:
    try:
        chosen = choose(facts)
    except ValueError as error:
        raise VideoError(
            f"a video of {facts.total_num_frames} frames",
            f"its frames cannot be chosen ({error})",
            "ask for fewer frames",
        ) from error
    wanted = [min(max(int(i), 0), facts.total_num_frames - 1) for i in chosen]
    facts.frames_indices = wanted
    return wanted
