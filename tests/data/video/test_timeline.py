"""Tests that frame times read from a file match the times painted into its frames."""

from __future__ import annotations

import random
from array import array
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from helpers.painted_time import SLOWING_S, painted_times_s, write_painted

from tvg.data.cache.frames import FrameCache
from tvg.data.collate import step_times
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.data.video.pyav_decoder import PyAVDecoder
from tvg.data.video.sampling import FrameSampling
from tvg.data.video.timeline import VariableRate, variable_rate
from tvg.types import LeadIn, Segment, VideoClip

HALF_A_FRAME_S = 0.5 / 30
DECODERS: dict[str, VideoDecoder] = {
    "decord": DecordDecoder(num_threads=1),
    "pyav": PyAVDecoder(num_threads=1),
}
B_FRAMES = {"preset": "fast", "bf": "3", "threads": "1"}
FILES: dict[str, dict[str, str] | None] = {
    "slow.mp4": None,
    "reordered.mp4": B_FRAMES,
    "slow.webm": None,
    "reordered.mkv": B_FRAMES,
    "reordered.ts": B_FRAMES,
    "slow.avi": None,
    "reordered.avi": B_FRAMES,
}


@pytest.fixture(scope="module")
def slowing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same frames in every container: 5 s at 30 fps, then 4.7 s at 3 fps."""
    folder = tmp_path_factory.mktemp("slowing")
    return {name: write_painted(folder / name, codec_options=o) for name, o in FILES.items()}


def load(
    path: Path, window: Segment | None = None, lead_in: LeadIn | None = None, backend: str = "pyav"
) -> VideoClip:
    decoder = DECODERS[backend]
    loader = ClipLoader(sampling=FrameSampling(), decoder=decoder, timeout_s=None)
    return loader.load(path, window, lead_in)


def on_screen_s(times_s: list[float], moment_s: float) -> float:
    """Returns the time of the frame on screen at a moment, with half a frame of tolerance."""
    return max(t for t in times_s if t < moment_s + HALF_A_FRAME_S or t == times_s[0])


@pytest.mark.parametrize("backend", DECODERS)
@pytest.mark.parametrize("name", FILES)
def test_frame_times_are_correct_in_random_windows(
    name: str, backend: str, slowing: dict[str, Path]
) -> None:
    draw = random.Random(name)
    for _ in range(20):
        start_s = draw.uniform(0, 8.5)
        window = Segment(start_s, draw.uniform(start_s + 0.5, 9.6))
        clip = load(slowing[name], window, backend=backend)
        error_s = clip.frame_times_s + start_s - painted_times_s(clip.frames)
        assert error_s.abs().max() < HALF_A_FRAME_S
        assert clip.duration_s == pytest.approx(window.length_s)


@pytest.mark.parametrize("name", FILES)
def test_variable_rate_is_sampled_uniformly_in_time(name: str, slowing: dict[str, Path]) -> None:
    clip = load(slowing[name])
    # The last frame starts at 9.67 s and lasts 1/30 s. At two frames per second, 9.7 s are 19.4
    # frames. The largest even number below is 18, as for a file of 291 frames at 30 fps.
    assert clip.duration_s == pytest.approx(9.7, abs=0.002)
    assert len(clip.frames) == 18
    assert clip.sampled_fps == pytest.approx(18 / 9.7, rel=1e-3)
    wanted = [on_screen_s(SLOWING_S, k * 290 / 30 / 17) for k in range(18)]
    # Rounding to steps of 1/30 s may move a time by one step.
    assert clip.frame_times_s.tolist() == pytest.approx(wanted, abs=1.01 / 30)
    slow_s = clip.frame_times_s[9:13].tolist()
    assert slow_s == pytest.approx([5.0, 5 + 2 / 3, 6, 6 + 2 / 3], abs=2e-3)


def test_all_containers_give_the_same_frames(slowing: dict[str, Path]) -> None:
    windows = [None, Segment(1.23, 8.9), Segment(5.05, 5.3)]
    for window in windows:
        times = [load(path, window).frame_times_s for path in slowing.values()]
        for other in times[1:]:
            assert torch.allclose(other, times[0], atol=0.002)


def test_variable_and_constant_copies_show_the_same_moments(tmp_path: Path) -> None:
    constant = load(write_painted(tmp_path / "c.mp4", [n / 30 for n in range(300)]))
    dropped = [n / 30 for n in range(300) if n < 150 or n % 3 == 0 or n > 290]
    varying = load(write_painted(tmp_path / "v.mp4", dropped))
    assert varying.frames.shape == constant.frames.shape
    assert varying.sampled_fps == pytest.approx(constant.sampled_fps)
    assert varying.duration_s == pytest.approx(constant.duration_s)
    lag_s = constant.frame_times_s - varying.frame_times_s
    assert lag_s.min() > -1e-6
    assert lag_s.max() < 2.01 / 30


def test_a_still_picture_is_shown_in_any_window(tmp_path: Path) -> None:
    """Like a screen recording: 1 s of movement, then no new frame for 8 s."""
    times_s = [n / 30 for n in range(30)] + [9.0]
    clip = load(write_painted(tmp_path / "still.mp4", times_s), Segment(3.0, 7.0))
    assert len(clip.frames) == 8
    assert clip.sampled_fps == pytest.approx(2.0, rel=0.02)
    assert clip.frame_times_s.tolist() == pytest.approx([29 / 30 - 3] * 8)
    # Times in a prompt are never below 0.
    assert step_times(clip.frame_times_s, 2) == [[0.0, 0.0]] * 4


@pytest.mark.parametrize("backend", DECODERS)
def test_a_lead_in_shifts_frame_times(backend: str, slowing: dict[str, Path]) -> None:
    window = Segment(4.0, 9.0)
    clip = load(slowing["slow.mp4"], window, LeadIn(3.0, "blank", 0), backend=backend)
    assert clip.duration_s == pytest.approx(8.0)
    own = clip.frame_times_s > 3.0 - HALF_A_FRAME_S
    assert 0 < own.sum() < len(own)
    error_s = clip.frame_times_s[own] - 3.0 + 4.0 - painted_times_s(clip.frames[own])
    assert error_s.abs().max() < HALF_A_FRAME_S
    assert clip.frames[~own].max() == 0


def test_a_still_picture_appears_when_its_lead_in_ends(tmp_path: Path) -> None:
    times_s = [n / 30 for n in range(30)] + [9.0]
    path = write_painted(tmp_path / "still.mp4", times_s)
    clip = load(path, Segment(3.0, 7.0), LeadIn(2.0, "blank", 0))
    shown_s = clip.frame_times_s.tolist()
    assert shown_s == sorted(shown_s)
    assert 0 <= shown_s[0] < 2.0
    assert shown_s[-8:] == pytest.approx([2.0] * 8, abs=0.02)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("times_s", [SLOWING_S, [n / 30 for n in range(291)]])
def test_time_starts_with_the_first_frame(
    suffix: str, times_s: list[float], tmp_path: Path
) -> None:
    """A delayed video stream or longer audio does not change frame times."""
    path = write_painted(tmp_path / f"late{suffix}", times_s, delay_s=1.5, audio_s=14.0)
    clip = load(path)
    assert clip.duration_s == pytest.approx(9.7, abs=0.01)
    assert clip.frame_times_s[0] == 0
    assert (clip.frame_times_s - painted_times_s(clip.frames)).abs().max() < HALF_A_FRAME_S


@pytest.mark.parametrize("fps", [10, 24_000 / 1001, 25, 30_000 / 1001, 50, 60])
def test_rounded_times_count_as_a_constant_rate(fps: float) -> None:
    times = np.arange(5000) / fps
    assert variable_rate(times.round(3), last_frame_s=None, stated_fps=fps) is None
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, 5000) / fps
    shaken = np.sort(times + 7.0 + jitter)
    assert variable_rate(shaken.tolist(), last_frame_s=1 / fps, stated_fps=fps) is None
    assert variable_rate([3.0], last_frame_s=1 / fps, stated_fps=fps) is None


@pytest.mark.parametrize(
    ("times_s", "last_frame_s", "stated_fps", "num_steps", "duration_s"),
    [
        ([0, 0.04, 0.08, 5.0], 0.04, 25.0, 126, 5.04),
        ([0, 0.04, 0.08, 0.12], 3.0, 25.0, 78, 3.12),  # the last frame lasts 3 s
        ([0, 0.04, 0.08, 0.12], None, 50.0, 4, 0.16),  # the stated rate is wrong
        ([0, 0.04, 0.08, 0.12], None, 0.0, 4, 0.16),  # no stated rate
        ([0, 30.0, 40.0], 10.0, 3 / 50, 1250, 50.0),  # slides: 25 steps per second
        ([0, 0.001, 0.002, 2.0], 0.001, 2.0, 240, 2.001),  # a burst: at most 120 per second
    ],
)
def test_irregular_times_count_as_a_variable_rate(
    times_s: list[float],
    last_frame_s: float | None,
    stated_fps: float,
    num_steps: int,
    duration_s: float,
) -> None:
    found = variable_rate(times_s, last_frame_s=last_frame_s, stated_fps=stated_fps)
    assert isinstance(found, VariableRate)
    assert found.num_steps == num_steps
    assert found.duration_s == pytest.approx(duration_s)
    assert list(found.times_s) == pytest.approx(times_s)


def test_steps_show_the_frame_on_screen() -> None:
    times_s = array("d", [0.0, 0.041, 0.49, 0.539, 0.57])
    found = VariableRate(times_s=times_s, num_steps=16, step_fps=25.0)
    steps = [0, 1, 2, 11, 12, 13, 14]
    # The middles of these steps, 0.02 + 0.04 * step: 0.02, 0.06, 0.10, 0.46, 0.50, 0.54, 0.58.
    assert found.frame_indices(steps) == [0, 1, 1, 1, 2, 3, 4]
    assert found.appearance_times_s([11, 14]) == [0.041, 0.57]
    assert found.duration_s == 0.64


def test_the_cache_keeps_variable_frame_times(tmp_path: Path, slowing: dict[str, Path]) -> None:
    loader = ClipLoader(sampling=FrameSampling(), decoder=DECODERS["pyav"], timeout_s=None)
    cache = FrameCache(folder=tmp_path / "cache", loader=loader)
    expected = loader.load(slowing["slow.webm"], Segment(5.1, 9.0))
    for _ in range(2):
        found = cache.load(slowing["slow.webm"], Segment(5.1, 9.0))
        assert torch.equal(found.frame_times_s, expected.frame_times_s)
        assert (found.sampled_fps, found.duration_s) == (expected.sampled_fps, expected.duration_s)


def test_packets_are_read_once_per_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvg.data.video import packets

    opened: list[Path] = []
    read = packets._read_packets

    def counting(path: Path, *rest: Any) -> Any:
        opened.append(path)
        return read(path, *rest)

    monkeypatch.setattr(packets, "_read_packets", counting)
    path = write_painted(tmp_path / "v.mp4", [n / 30 for n in range(60)])
    assert [load(path, window).duration_s for window in (None, Segment(0.5, 1.5))] == [2.0, 1.0]
    assert opened == [path]
    write_painted(path, [n / 30 for n in range(90)])
    assert load(path).duration_s == 3.0
    assert opened == [path, path]


def test_hidden_vp8_frames_are_not_counted(tmp_path: Path) -> None:
    plain = write_painted(tmp_path / "plain.webm", [n / 30 for n in range(90)])
    path = tmp_path / "hidden.webm"
    with av.open(str(plain)) as source, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if not packet.size:
                continue
            data, pts = bytes(packet), packet.pts
            packet.stream = stream
            copy.mux(packet)
            if pts == 0:  # repeat the key frame, hidden: show_frame is unset
                hidden = av.Packet(bytes([data[0] & ~0x10]) + data[1:])
                hidden.stream, hidden.time_base = stream, Fraction(1, 1000)
                hidden.pts = hidden.dts = 10
                copy.mux(hidden)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 91
    info = DECODERS["pyav"].probe(path)
    assert (info.num_frames, info.duration_s) == (90, pytest.approx(3.0, abs=0.04))
    clip = load(path)
    assert (clip.frame_times_s - painted_times_s(clip.frames)).abs().max() < HALF_A_FRAME_S
