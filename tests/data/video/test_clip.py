"""Tests that clips equal those of qwen-vl-utils 0.0.14: frame times, rate, size and all pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import OpenVideo, VideoDecoder, VideoError, VideoInfo
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.data.video.pyav_decoder import PyAVDecoder
from tvg.data.video.sampling import FrameSampling
from tvg.types import LeadIn, Segment, VideoClip

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
    """A function that returns a file's frames (float), metadata and rate from qwen-vl-utils."""
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
    # 335 frames at 10000/1049 fps = 35.14 s -> 70 frames at 2 FPS, at most 80,281 pixels each.
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


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30000, 1001), 60])
def test_rounded_times_equal_oracle(
    fps: float, tmp_path: Path, write_video: Callable[..., Path], oracle: Callable[..., Any]
) -> None:
    """Matroska rounds times to milliseconds; the rate still counts as constant."""
    path = write_video(tmp_path / "v.mkv", fps=fps, num_frames=150, codec_options={"bf": "2"})
    for window in (None, Segment(0.4, 2.1)):
        assert_equal_to_oracle(path, SMALL, window, oracle)


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
        Segment(2.0, 2.7),
    ],
)
@pytest.mark.parametrize("name", ["plain", "bframes", "cuts", "matroska"])
def test_windows_equal_oracle(
    window: Segment, name: str, videos: dict[str, Path], oracle: Callable[..., Any]
) -> None:
    assert_equal_to_oracle(videos[name], SMALL, window, oracle)


def test_chunks_do_not_change_pixels(
    videos: dict[str, Path], oracle: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1, 3):
        monkeypatch.setattr("tvg.data.video.decode.CHUNK_BYTES", size * 64 * 48 * 3)
        assert_equal_to_oracle(videos["bframes"], SMALL, None, oracle)


def test_time_limit_does_not_change_the_clip(videos: dict[str, Path]) -> None:
    expected = loader("pyav", SMALL).load(videos["bframes"], Segment(0.5, 3.0))
    limited = loader("pyav", SMALL, timeout_s=60.0)
    clip = limited.load(videos["bframes"], Segment(0.5, 3.0))
    assert torch.equal(clip.frames, expected.frames)
    assert torch.equal(clip.frame_times_s, expected.frame_times_s)
    assert (clip.sampled_fps, clip.duration_s) == (expected.sampled_fps, expected.duration_s)


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_videos_of_one_to_three_frames_give_two_frames(
    num_frames: int, tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    path = write_video(tmp_path / "v.mp4", num_frames=num_frames)
    clip = loader("decord").load(path)
    assert clip.frames.shape[0] == 2
    assert clip.frame_times_s.tolist() == [0.0, (num_frames - 1) / 25]
    assert clip.sampled_fps == 2 / num_frames * 25
    assert clip.duration_s == num_frames / 25
    assert torch.equal(clip.frames[0], clip.frames[1]) is (num_frames == 1)


def test_a_window_of_one_frame_repeats_it(videos: dict[str, Path]) -> None:
    clip = loader().load(videos["plain"], Segment(0.99, 1.01))
    whole = loader("pyav", FrameSampling(fps=25)).load(videos["plain"])
    assert clip.frame_times_s.tolist() == pytest.approx([0.01, 0.01])
    assert clip.duration_s == pytest.approx(0.02)
    assert torch.equal(clip.frames[0], clip.frames[1])
    assert torch.equal(clip.frames[0], whole.frames[25])


def test_times_are_relative_to_the_window(videos: dict[str, Path]) -> None:
    clip = loader().load(videos["bframes"], Segment(1.01, 4.0))
    # Frame 26 (1.04 s) is the first inside; the file ends at 90 / 25 = 3.6 s.
    assert clip.frame_times_s[0].item() == pytest.approx(0.03)
    assert clip.duration_s == pytest.approx(2.59)


@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_for_bad_files_name_the_path(
    backend: str, bad_files: dict[str, tuple[Path, str]]
) -> None:
    for path, problem in bad_files.values():
        with pytest.raises(VideoError, match=problem) as caught:
            loader(backend).load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("timeout_s", [None, 30.0])
@pytest.mark.parametrize(
    ("window", "problem"),
    [
        (Segment(2.41, 2.5), "holds no frame"),
        (Segment(2.0, 1.0), "start < end"),
        (Segment(50.0, 60.0), "does not fit this file of 2.40 s"),
    ],
)
def test_errors_for_bad_windows_name_the_file(
    window: Segment, problem: str, timeout_s: float | None, videos: dict[str, Path]
) -> None:
    with pytest.raises(VideoError, match=rf"plain\.mp4: .*{problem}"):
        loader(timeout_s=timeout_s).load(videos["plain"], window)


def test_a_pre_cut_file_is_used_completely(tmp_path: Path, write_video: Any) -> None:
    path = write_video(tmp_path / "cut.mp4", fps=5, num_frames=60)  # 12 s
    whole = loader("pyav", SMALL).load(path)
    cut = loader("pyav", SMALL).load(path, Segment(40.0, 51.5))
    assert_same(cut, whole)
    assert (cut.duration_s, cut.frame_times_s[0].item()) == (12.0, 0.0)
    part = loader("pyav", SMALL).load(path, Segment(1.0, 12.5))  # a mismatch of 0.5 s either way
    assert (part.duration_s, part.frame_times_s[-1].item()) == (11.0, pytest.approx(10.8))


def assert_same(a: VideoClip, b: VideoClip) -> None:
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, f.name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["blank", "noise", "freeze"])
def test_lead_in_comes_before_the_window(kind: Any, backend: str, videos: dict[str, Path]) -> None:
    every_frame = FrameSampling(fps=25)  # "bframes" is 3.6 s of 25 fps
    window, lead_in = Segment(1.01, 3.0), LeadIn(0.5, kind, seed=7)
    plain = loader(backend, every_frame).load(videos["bframes"], window)
    clip = loader(backend, every_frame).load(videos["bframes"], window, lead_in)
    # Frames 26 to 75 are 50 frames, with round(0.5 * 25) = 12 lead-in frames before them.
    assert clip.frames.shape == (62, *plain.frames.shape[1:])
    assert torch.equal(clip.frames[12:], plain.frames)
    assert clip.frame_times_s[12:].tolist() == pytest.approx((plain.frame_times_s + 0.48).tolist())
    assert clip.frame_times_s[0].item() == pytest.approx(0.03)  # frame 26 is at 1.04 s
    assert clip.duration_s == pytest.approx(1.99 + 0.48)
    assert clip.sampled_fps == 25
    filler = clip.frames[:12]
    if kind == "blank":
        assert filler.max() == 0
    if kind == "freeze":
        assert torch.equal(filler, plain.frames[:1].expand_as(filler))
    if kind == "noise":
        assert filler.float().mean().item() == pytest.approx(127.5, abs=1)
        assert filler.float().std().item() == pytest.approx(73.9, abs=1)
        other = loader(backend, every_frame).load(videos["bframes"], window, LeadIn(0.5, kind, 8))
        assert not torch.equal(other.frames[:12], filler)
        again = loader(backend, every_frame).load(videos["bframes"], window, lead_in)
        assert torch.equal(again.frames[:12], filler)


def test_lead_in_is_sampled_like_part_of_the_file(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    """Counts, sizes and times equal those of a file that contains the extra frames."""
    short = write_video(tmp_path / "short.mp4", num_frames=61, fps=12.5, width=96, height=64)
    long = write_video(tmp_path / "long.mp4", num_frames=161, fps=12.5, width=96, height=64)
    for rate in (0.5, 2.0, 3.7):
        sampling = replace(SMALL, fps=rate)
        padded = loader("pyav", sampling).load(short, lead_in=LeadIn(8.0, "blank", 0))
        real = loader("pyav", sampling).load(long)
        assert padded.frames.shape == real.frames.shape
        assert torch.equal(padded.frame_times_s, real.frame_times_s)
        assert padded.sampled_fps == real.sampled_fps
        assert padded.duration_s == pytest.approx(real.duration_s)
        is_lead_in = padded.frame_times_s < 8.0
        assert padded.frames[is_lead_in].max() == 0
        assert padded.frames[~is_lead_in].amax((1, 2, 3)).min() > 0
        assert 0 < is_lead_in.sum() < len(is_lead_in)


@pytest.mark.parametrize("length_s", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["blank", "noise", "freeze"])
def test_a_lead_in_shorter_than_a_frame_changes_nothing(
    kind: Any, length_s: float, videos: dict[str, Path]
) -> None:
    plain = loader("pyav", SMALL).load(videos["cuts"], Segment(0.4, 2.0))
    clip = loader("pyav", SMALL).load(videos["cuts"], Segment(0.4, 2.0), LeadIn(length_s, kind, 1))
    assert_same(clip, plain)


@pytest.mark.parametrize(
    ("backend", "timeout_s"), [("decord", None), ("pyav", None), ("pyav", 60.0)]
)
@pytest.mark.parametrize("kind", ["blank", "freeze"])
def test_a_single_frame_may_fall_into_the_lead_in(
    kind: Any, backend: str, timeout_s: float | None, videos: dict[str, Path]
) -> None:
    one = replace(SMALL, frame_factor=1, min_frames=1, max_frames=1)
    clip = loader(backend, one, timeout_s).load(videos["plain"], None, LeadIn(1.0, kind, 1))
    assert clip.frames.shape[0] == 1
    assert clip.duration_s == pytest.approx(3.4)


def test_lead_in_does_not_depend_on_the_time_limit(videos: dict[str, Path]) -> None:
    lead_in = LeadIn(0.7, "freeze", 0)
    expected = loader("pyav", SMALL).load(videos["bframes"], Segment(0.5, 3.0), lead_in)
    limited = loader("pyav", SMALL, timeout_s=60.0)
    assert_same(limited.load(videos["bframes"], Segment(0.5, 3.0), lead_in), expected)


@pytest.mark.parametrize("length_s", [-1.0, float("nan"), float("inf")])
def test_errors_for_impossible_lead_ins_name_the_file(
    length_s: float, videos: dict[str, Path]
) -> None:
    with pytest.raises(VideoError, match=r"plain\.mp4: a lead-in must be .* got"):
        loader().load(videos["plain"], lead_in=LeadIn(length_s, "blank", 0))


@pytest.mark.parametrize(
    ("window", "lead_in"),
    [
        (None, None),
        (Segment(0.5, 2.0), None),
        (Segment(30.0, 32.4), None),  # the file is already cut
        (None, LeadIn(6.3, "noise", 3)),
        (Segment(1.0, 2.2), LeadIn(11.0, "freeze", 3)),
    ],
)
def test_frame_count_and_size_are_predicted_without_decoding(
    window: Segment | None, lead_in: LeadIn | None, videos: dict[str, Path]
) -> None:
    for name in ("plain", "narrow", "rotated_90"):
        for sampling in (SMALL, FrameSampling(fps=7)):
            clip_loader = loader("pyav", sampling)
            info = clip_loader.decoder.probe(videos[name])
            num_frames, height, width = clip_loader.frame_count_and_size(info, window, lead_in)
            clip = clip_loader.load(videos[name], window, lead_in)
            assert clip.frames.shape == (num_frames, 3, height, width)


def test_frame_count_and_size_by_hand() -> None:
    info = VideoInfo(num_frames=250, fps=25.0, height=360, width=640)  # 10 s
    clip_loader = loader()
    # 20 frames: the cap of 768 * 784 pixels is above 640x360, which rounds to 644 x 364.
    assert clip_loader.frame_count_and_size(info) == (20, 364, 644)
    # 35 s at 2 FPS are 70 frames, each of at most 80,281 pixels.
    assert clip_loader.frame_count_and_size(info, lead_in=LeadIn(25.0, "blank", 0)) == (
        70,
        196,
        364,
    )
    # Frames 25 to 75 are 51 frames: 2.04 s at 2 FPS, an even number of at least 4.
    assert clip_loader.frame_count_and_size(info, Segment(1.0, 3.0)) == (4, 364, 644)
    with pytest.raises(ValueError, match="does not fit this file"):
        clip_loader.frame_count_and_size(info, Segment(30.0, 35.0))


class Faulty(VideoDecoder):
    """Returns the first frames of a video and then fails."""

    def __init__(self, info: VideoInfo, num_delivered: int) -> None:
        self.info, self.num_delivered = info, num_delivered

    @contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[OpenVideo]:
        self.path = path
        yield self

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        yield np.zeros((self.num_delivered, self.info.height, self.info.width, 3), np.uint8)
        raise VideoError(self.path, "cannot be decoded any further")


def test_an_incomplete_clip_is_refused() -> None:
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
def test_errors_for_impossible_videos_name_the_file(info: VideoInfo, problem: str) -> None:
    clip_loader = ClipLoader(sampling=FrameSampling(), decoder=Faulty(info, 1), timeout_s=None)
    with pytest.raises(VideoError, match=rf"some\.mp4: .*{problem}"):
        clip_loader.load("some.mp4")
