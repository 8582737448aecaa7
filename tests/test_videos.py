"""The frames that are wanted come out as they went in; what is no video is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vispec.errors import VideoError
from vispec.videos import load_video

av = pytest.importorskip("av")
FRAMES = 12


def brightness(index: int) -> int:
    return 20 * index + 10


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve grey frames at six a second, each lighter than the one before."""
    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(FRAMES):
            grey = np.full((48, 64, 3), brightness(index), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("wanted", [[0], [0, 5, 11], [3, 3, 7], list(range(FRAMES))])
def test_wanted_frames_are_decoded(file: Path, wanted: list[int]) -> None:
    for source in (file, str(file), file.read_bytes()):
        video = load_video(source, lambda facts: wanted)
        assert video.frames.shape == (len(wanted), 48, 64, 3)
        assert video.frames.dtype == np.uint8
        means = video.frames.mean((1, 2, 3))
        assert np.abs(means - [brightness(i) for i in wanted]).max() < 6
        assert video.metadata.frames_indices == wanted


def test_the_choice_is_made_from_the_videos_facts(file: Path) -> None:
    seen = []
    load_video(file, lambda facts: seen.append(facts) or [0])
    (facts,) = seen
    assert facts.total_num_frames == FRAMES
    assert facts.fps == pytest.approx(6)
    assert facts.duration == pytest.approx(2)
    assert (facts.height, facts.width) == (48, 64)


def test_the_rate_is_that_of_the_frames_and_not_of_the_header(tmp_path: Path) -> None:
    """How long the last frame stays is often cut short; the header counts it, we do not."""
    path = tmp_path / "short.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in (0, 6, 12):  # five a second, the last for a thirtieth
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    seen = []
    load_video(path, lambda facts: seen.append(facts) or [0])
    assert seen[0].fps == pytest.approx(5)
    assert seen[0].duration == pytest.approx(0.6)


def test_frames_beyond_the_end_are_the_last(file: Path) -> None:
    video = load_video(file, lambda facts: [5, 40])
    assert video.metadata.frames_indices == [5, FRAMES - 1]


def test_an_array_of_frames_is_a_video() -> None:
    frames = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    video = load_video(frames, lambda facts: [4, 1])
    assert np.array_equal(video.frames, frames[[4, 1]])
    assert video.metadata.total_num_frames == 5


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.mp4", None, ["none.mp4", "no such file"]),
        ("text.mp4", b"not a video at all", ["text.mp4", "cannot be decoded", "MP4"]),
        ("empty.mp4", b"", ["empty.mp4", "cannot be decoded"]),
    ],
)
def test_what_is_no_video_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError) as error:
        load_video(tmp_path / name, lambda facts: [0])
    for word in words:
        assert word in str(error.value)


def test_a_video_cut_short_is_refused_or_shorter(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        load_video(tmp_path / "cut.mp4", lambda facts: [0])


def test_too_many_pixels_are_refused_before_they_are_kept(file: Path) -> None:
    with pytest.raises(VideoError, match="12 frames of 64 x 48"):
        load_video(file, lambda facts: range(FRAMES), max_pixels=12 * 64 * 48 - 1)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 3, 3), np.uint8), np.zeros((0, 2, 2, 3), np.uint8)]
)
def test_an_array_that_is_no_video_is_refused(frames: np.ndarray) -> None:
    with pytest.raises(VideoError, match="not laid out as a video"):
        load_video(frames, lambda facts: [0])


def test_other_things_are_refused() -> None:
    with pytest.raises(VideoError, match="type int"):
        load_video(3, lambda facts: [0])  # type: ignore[arg-type]


def test_a_folder_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="folder"):
        load_video(tmp_path, lambda facts: [0])


def test_a_video_that_changes_its_size_is_shown_in_its_first(tmp_path: Path) -> None:
    parts = []
    for number, (width, height) in enumerate(((64, 48), (32, 64))):
        part = tmp_path / f"{number}.ts"
        with av.open(str(part), "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for _ in range(6):
                grey = np.full((height, width, 3), 90, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
        parts.append(part.read_bytes())
    video = load_video(b"".join(parts), lambda facts: range(facts.total_num_frames))
    assert len(video.frames) > 8
    assert video.frames.shape[1:] == (48, 64, 3)
