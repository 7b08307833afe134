"""Clips equal qwen-vl-utils 0.0.14's: frames, rate, size and every pixel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tvg.data.clip import ClipLoader
from tvg.data.decode import OpenVideo, VideoDecoder, VideoError, VideoInfo
from tvg.data.decode_decord import DecordDecoder
from tvg.data.decode_pyav import PyAVDecoder
from tvg.data.sampling import FrameSampling
from tvg.types import Segment

BACKENDS: dict[str, VideoDecoder] = {
    "decord": DecordDecoder(num_threads=1),
    "pyav": PyAVDecoder(num_threads=1),
}
SMALL = FrameSampling(
    min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28, total_pixels=400 * 28 * 28, max_frames=24
)


def loader(
    backend: str = "pyav",
    sampling: FrameSampling | None = None,
    timeout_s: float | None = None,
) -> ClipLoader:
    return ClipLoader(
        sampling=sampling or FrameSampling(), decoder=BACKENDS[backend], timeout_s=timeout_s
    )


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[torch.Tensor, Any, float]]:
    """qwen-vl-utils' frames (float), metadata and sampled rate of a file."""
    from qwen_vl_utils import vision_process

    monkeypatch.setattr(vision_process, "FORCE_QWENVL_VIDEO_READER", "decord")
    vision_process.get_video_reader_backend.cache_clear()

    def fetch(path: Path, sampling: FrameSampling, window: Segment | None) -> Any:
        element: dict[str, Any] = {
            "video": os.fspath(path),
            "fps": sampling.fps,
            "min_frames": sampling.min_frames,
            "max_frames": sampling.max_frames,
            "min_pixels": sampling.min_pixels,
            "max_pixels": sampling.max_pixels,
            "total_pixels": sampling.total_pixels,
        }
        if window is not None:
            element |= {"video_start": window.start_s, "video_end": window.end_s}
        (frames, metadata), sampled_fps = vision_process.fetch_video(
            element, return_video_sample_fps=True, return_video_metadata=True
        )
        assert metadata["video_backend"] == "decord"
        return frames, metadata, sampled_fps

    return fetch


def assert_equal_to_oracle(
    path: Path,
    sampling: FrameSampling,
    window: Segment | None,
    oracle: Callable[..., Any],
    backends: Sequence[str] = ("decord", "pyav"),
) -> None:
    frames, metadata, sampled_fps = oracle(path, sampling, window)
    start_s = window.start_s if window is not None else 0.0
    times = np.array(metadata["frames_indices"]) / metadata["fps"] - start_s
    for backend in backends:
        clip = loader(backend, sampling).load(path, window)
        assert clip.frames.dtype == torch.uint8
        assert clip.frames.shape == frames.shape
        assert torch.equal(clip.frames.float(), frames)
        assert clip.sampled_fps == sampled_fps
        assert np.array_equal(clip.frame_times_s.numpy(), times)


@pytest.mark.parametrize(
    ("window", "fps"),
    [(None, 2.0), (Segment(5.3, 20.0), 1.0), (Segment(0.0, 1.0), 4.0)],
)
def test_sample_video_equals_oracle(
    window: Segment | None, fps: float, shared_dir: Path, oracle: Callable[..., Any]
) -> None:
    path = shared_dir / "data" / "videos" / "OHOFG.mp4"
    assert_equal_to_oracle(path, FrameSampling(fps=fps), window, oracle)


def test_sample_video_by_hand(shared_dir: Path) -> None:
    clip = loader("decord").load(shared_dir / "data" / "videos" / "OHOFG.mp4")
    # 335 frames at 10000/1049 fps = 35.14 s -> 70 frames at 2 FPS; 80,281 pixels each at most.
    assert clip.frames.shape == (70, 3, 196, 364)
    assert clip.duration_s == pytest.approx(35.1415)
    assert clip.sampled_fps == pytest.approx(70 / 35.1415)
    assert clip.frame_times_s[0] == 0
    assert clip.frame_times_s[-1] == pytest.approx(334 * 0.1049)


@pytest.mark.parametrize("fps", [5, 12.5, Fraction(24000, 1001), 25, Fraction(30000, 1001), 60])
def test_frame_rates_equal_oracle(
    fps: float, tmp_path: Path, write_video: Callable[..., Path], oracle: Callable[..., Any]
) -> None:
    path = write_video(tmp_path / "v.mp4", fps=fps, num_frames=61, codec_options={"bf": "2"})
    for rate in (0.5, 2.0, 3.7):
        assert_equal_to_oracle(path, replace(SMALL, fps=rate), None, oracle)


@pytest.mark.parametrize("num_frames", [2, 3, 4, 5, 7, 50, 333])
def test_lengths_equal_oracle(
    num_frames: int, tmp_path: Path, write_video: Callable[..., Path], oracle: Callable[..., Any]
) -> None:
    path = write_video(tmp_path / "v.mp4", num_frames=num_frames)
    assert_equal_to_oracle(path, SMALL, None, oracle)
    assert_equal_to_oracle(path, FrameSampling(), None, oracle)


@pytest.mark.parametrize(
    ("width", "height"),
    [(64, 48), (36, 64), (28, 28), (322, 182), (640, 36), (18, 300), (500, 500)],
)
def test_aspect_ratios_equal_oracle(
    width: int,
    height: int,
    tmp_path: Path,
    write_video: Callable[..., Path],
    oracle: Callable[..., Any],
) -> None:
    path = write_video(tmp_path / "v.mp4", num_frames=30, width=width, height=height)
    assert_equal_to_oracle(path, SMALL, None, oracle)
    assert_equal_to_oracle(path, FrameSampling(), None, oracle)


@pytest.mark.parametrize(
    "window",
    [
        Segment(0.0, 1.0),
        Segment(0.5, 2.0),
        Segment(1.01, 1.99),
        Segment(1.0, 1.2),
        Segment(2.0, 99.0),
    ],
)
@pytest.mark.parametrize("name", ["plain", "bframes", "cuts", "varying_rate", "matroska"])
def test_windows_equal_oracle(
    window: Segment, name: str, videos: dict[str, Path], oracle: Callable[..., Any]
) -> None:
    assert_equal_to_oracle(videos[name], SMALL, window, oracle)


def test_chunks_do_not_change_pixels(
    videos: dict[str, Path], oracle: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1, 3):
        monkeypatch.setattr("tvg.data.decode.CHUNK_BYTES", size * 64 * 48 * 3)
        assert_equal_to_oracle(videos["bframes"], SMALL, None, oracle)


def test_time_limit_does_not_change_the_clip(videos: dict[str, Path]) -> None:
    expected = loader("pyav", SMALL).load(videos["bframes"], Segment(0.5, 3.0))
    limited = loader("pyav", SMALL, timeout_s=60.0)
    clip = limited.load(videos["bframes"], Segment(0.5, 3.0))
    assert torch.equal(clip.frames, expected.frames)
    assert torch.equal(clip.frame_times_s, expected.frame_times_s)
    assert (clip.sampled_fps, clip.duration_s) == (expected.sampled_fps, expected.duration_s)


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_very_short_videos(
    num_frames: int, tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    path = write_video(tmp_path / "v.mp4", num_frames=num_frames)
    clip = loader("decord").load(path)
    assert clip.frames.shape[0] == 2
    assert clip.frame_times_s.tolist() == [0.0, (num_frames - 1) / 25]
    assert clip.sampled_fps == 2 / num_frames * 25
    assert clip.duration_s == num_frames / 25
    assert torch.equal(clip.frames[0], clip.frames[1]) is (num_frames == 1)


def test_window_of_one_frame(videos: dict[str, Path]) -> None:
    clip = loader().load(videos["plain"], Segment(0.99, 1.01))
    whole = loader("pyav", FrameSampling(fps=25)).load(videos["plain"])
    assert clip.frame_times_s.tolist() == pytest.approx([0.01, 0.01])
    assert clip.duration_s == pytest.approx(0.02)
    assert torch.equal(clip.frames[0], clip.frames[1])
    assert torch.equal(clip.frames[0], whole.frames[25])


def test_times_are_relative_to_the_window(videos: dict[str, Path]) -> None:
    clip = loader().load(videos["bframes"], Segment(1.01, 99.0))
    # Frame 26 (1.04 s) is the first inside; the file ends at 90 / 25 = 3.6 s.
    assert clip.frame_times_s[0].item() == pytest.approx(0.03)
    assert clip.duration_s == pytest.approx(2.59)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_files_give_no_clip(backend: str, bad_files: dict[str, tuple[Path, str]]) -> None:
    for path, problem in bad_files.values():
        with pytest.raises(VideoError, match=problem) as caught:
            loader(backend).load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("timeout_s", [None, 30.0])
@pytest.mark.parametrize(
    ("window", "problem"),
    [(Segment(50.0, 60.0), "holds no frame"), (Segment(2.0, 1.0), "start < end")],
)
def test_bad_windows_name_the_file(
    window: Segment, problem: str, timeout_s: float | None, videos: dict[str, Path]
) -> None:
    with pytest.raises(VideoError, match=rf"plain\.mp4: .*{problem}"):
        loader(timeout_s=timeout_s).load(videos["plain"], window)


class Faulty(VideoDecoder):
    """Claims a file that it does not deliver."""

    def __init__(self, info: VideoInfo, num_delivered: int) -> None:
        self.info, self.num_delivered = info, num_delivered

    @contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[OpenVideo]:
        self.path = path
        yield self

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        yield np.zeros((self.num_delivered, self.info.height, self.info.width, 3), np.uint8)
        raise VideoError(self.path, "cannot be decoded any further")


def test_half_a_clip_is_no_clip() -> None:
    decoder = Faulty(VideoInfo(num_frames=100, fps=25.0, height=56, width=56), num_delivered=3)
    clip_loader = ClipLoader(sampling=FrameSampling(), decoder=decoder, timeout_s=None)
    with pytest.raises(VideoError, match="any further"):
        clip_loader.load("some.mp4")


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        (VideoInfo(num_frames=100, fps=25.0, height=2, width=500), "200 times"),
        (VideoInfo(num_frames=0, fps=25.0, height=50, width=50), "at least one frame"),
        (VideoInfo(num_frames=10, fps=0.0, height=50, width=50), "frame rate"),
    ],
)
def test_impossible_videos_name_the_file(info: VideoInfo, problem: str) -> None:
    clip_loader = ClipLoader(sampling=FrameSampling(), decoder=Faulty(info, 1), timeout_s=None)
    with pytest.raises(VideoError, match=rf"some\.mp4: .*{problem}"):
        clip_loader.load("some.mp4")
