"""Tests that frame sampling and resizing equal qwen-vl-utils 0.0.14 for all input it accepts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from qwen_vl_utils import vision_process as qwen

from tvg.data.video.sampling import (
    FrameSampling,
    frame_indices,
    frame_range,
    max_pixels_per_frame,
    num_lead_in_frames,
    num_sampled_frames,
    resolve_window,
    smart_resize,
    window_bounds,
)
from tvg.types import LeadIn, Segment

rates = st.one_of(
    st.sampled_from([1.0, 9.532888465204957, 12.5, 24000 / 1001, 25.0, 30000 / 1001, 60.0]),
    st.floats(0.5, 120),
)
counts = st.integers(1, 200_000)


@given(
    total=st.integers(2, 200_000),
    video_fps=rates,
    fps=st.sampled_from([0.5, 1.0, 2.0, 3.7, 4.0, 30.0]),
    min_frames=st.integers(1, 16),
    max_frames=st.integers(18, 2000),
)
@example(total=335, video_fps=9.532888465204957, fps=2.0, min_frames=4, max_frames=768)
@example(total=2, video_fps=25.0, fps=2.0, min_frames=4, max_frames=768)
@example(total=3, video_fps=25.0, fps=2.0, min_frames=4, max_frames=768)
def test_frame_count_equals_oracle(
    total: int, video_fps: float, fps: float, min_frames: int, max_frames: int
) -> None:
    limits: dict[str, Any] = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    count = num_sampled_frames(total, video_fps, FrameSampling(**limits))
    assert count == qwen.smart_nframes(limits, total_frames=total, video_fps=video_fps)
    assert count % 2 == 0
    assert count <= total


def test_frame_count_defaults_equal_oracle_defaults() -> None:
    for total in range(2, 3000, 7):
        ours = num_sampled_frames(total, 25.0, FrameSampling())
        assert ours == qwen.smart_nframes({}, total_frames=total, video_fps=25.0)


@given(total=st.integers(1, 5), factor=st.sampled_from([1, 2, 4]))
def test_short_clips_fill_a_temporal_patch(total: int, factor: int) -> None:
    sampling = FrameSampling(frame_factor=factor)
    count = num_sampled_frames(total, 25.0, sampling)
    indices = frame_indices(0, total - 1, count)
    assert count == max(factor, total // factor * factor if total < 4 else 4)
    assert len(indices) == count
    assert set(indices) <= set(range(total))


def test_a_single_frame_is_repeated() -> None:
    assert num_sampled_frames(1, 25.0, FrameSampling()) == 2
    assert frame_indices(0, 0, 2) == [0, 0]


@given(
    total=counts,
    video_fps=rates,
    start=st.floats(-10, 4000),
    end=st.floats(-10, 4000),
)
@example(total=100, video_fps=25.0, start=0.0, end=4.0)
@example(total=100, video_fps=25.0, start=1.0, end=2.0)
@example(total=335, video_fps=9.532888465204957, start=5.0, end=20.0)
def test_window_equals_oracle(total: int, video_fps: float, start: float, end: float) -> None:
    asked = {"video_start": start, "video_end": end}
    try:
        expected = qwen.calculate_video_frame_range(asked, total, video_fps)
    except ValueError:
        expected = None
    try:
        first, last = frame_range(total, video_fps, Segment(start, end))
    except ValueError:
        assert expected is None
        return
    assert expected == (first, last, last - first + 1) if first < last else expected is None


def test_the_range_without_window_is_the_complete_file() -> None:
    assert frame_range(335, 9.53, None) == (0, 334)
    assert window_bounds(100, 25.0, None) == (0.0, 4.0)


def test_window_by_hand() -> None:
    # At 25 fps, frame 25 is at 1.0 s. The first frame after 1.01 s is 26.
    assert frame_range(100, 25.0, Segment(1.0, 2.0)) == (25, 50)
    assert frame_range(100, 25.0, Segment(1.01, 1.99)) == (26, 49)
    assert frame_range(100, 25.0, Segment(-3.0, 99.0)) == (0, 99)
    assert frame_range(100, 25.0, Segment(0.99, 1.01)) == (25, 25)
    assert window_bounds(100, 25.0, Segment(-3.0, 99.0)) == (0.0, 4.0)


@pytest.mark.parametrize(
    ("window", "problem"),
    [
        (Segment(2.0, 2.0), "start < end"),
        (Segment(3.0, 1.0), "start < end"),
        (Segment(math.nan, 1.0), "start < end"),
        (Segment(0.0, math.nan), "start < end"),
        (Segment(5.0, 9.0), "holds no frame"),
        (Segment(-5.0, -1.0), "holds no frame"),
        (Segment(1.001, 1.002), "holds no frame"),
    ],
)
def test_unusable_windows_are_refused(window: Segment, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        frame_range(100, 25.0, window)


@given(first=st.integers(0, 100_000), length=st.integers(1, 100_000), num=st.integers(1, 768))
@example(first=0, length=335, num=70)
def test_indices_equal_oracle(first: int, length: int, num: int) -> None:
    last = first + length - 1
    indices = frame_indices(first, last, num)
    assert indices == torch.linspace(first, last, num).round().long().tolist()
    assert indices == sorted(indices)
    assert indices[0] == first
    assert num == 1 or indices[-1] == last


def test_indices_do_not_depend_on_the_default_dtype() -> None:
    expected = frame_indices(0, 21_337, 768)
    torch.set_default_dtype(torch.float64)
    try:
        assert frame_indices(0, 21_337, 768) == expected
    finally:
        torch.set_default_dtype(torch.float32)


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    factor=st.sampled_from([14, 28, 32]),
    min_tokens=st.integers(1, 64),
    more_tokens=st.integers(0, 4000),
)
@example(height=360, width=640, factor=28, min_tokens=16, more_tokens=752)
def test_resize_equals_oracle(
    height: int, width: int, factor: int, min_tokens: int, more_tokens: int
) -> None:
    limits = {
        "factor": factor,
        "min_pixels": min_tokens * factor**2,
        "max_pixels": (min_tokens + more_tokens) * factor**2,
    }
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(ValueError, match=f"{width}x{height}"):
            smart_resize(height, width, **limits)
        return
    expected = qwen.smart_resize(height, width, **limits)
    # The oracle can round the short side of a narrow frame to 0, but cannot resize to it.
    assert smart_resize(height, width, **limits) == tuple(max(factor, side) for side in expected)


@pytest.mark.parametrize("num_frames", [2, 4, 8, 10, 70, 400, 446, 448, 768])
def test_pixel_cap_equals_the_released_formula(num_frames: int) -> None:
    unit = 28 * 28
    expected = max(min(768 * unit, 3584 * unit / num_frames * 2), int(1.05 * 16 * unit))
    assert max_pixels_per_frame(num_frames, FrameSampling()) == expected


def test_a_clips_total_pixels_stay_within_the_budget() -> None:
    # 70 frames of 640x360: 3584 * 784 / 70 * 2 = 80,281 pixels per frame -> 196 x 364 = 71,344.
    cap = max_pixels_per_frame(70, FrameSampling())
    size = smart_resize(360, 640, factor=28, min_pixels=16 * 784, max_pixels=cap)
    assert size == (196, 364)
    assert 35 * size[0] * size[1] <= 3584 * 784


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"fps": 0}, "fps"),
        ({"fps": math.nan}, "fps"),
        ({"frame_factor": -2}, "frame_factor"),
        ({"min_frames": 10, "max_frames": 8}, "min_frames=10"),
        ({"min_frames": 5, "max_frames": 5}, "max_frames=5"),
        ({"min_pixels": 100, "max_pixels": 99}, "min_pixels"),
    ],
)
def test_impossible_settings_are_refused(knobs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FrameSampling(**knobs)


@pytest.mark.parametrize(("total", "fps"), [(0, 25.0), (-1, 25.0), (5, 0.0), (5, math.nan)])
def test_impossible_streams_are_refused(total: int, fps: float) -> None:
    with pytest.raises(ValueError, match="a video must have"):
        num_sampled_frames(total, fps, FrameSampling())
    with pytest.raises(ValueError, match="a video must have"):
        frame_range(total, fps, None)


CUT = None  # the file is already the window


@pytest.mark.parametrize(
    ("window", "file_duration_s", "expected"),
    [
        # Comments: mismatch in seconds if the window is a part of the file / if the file is
        # already cut. A mismatch of up to max(2 s, 5 % of the window) is accepted.
        (Segment(39.0, 84.7), 120.0, Segment(39.0, 84.7)),  # 0 / 74.3
        (Segment(39.0, 84.7), 84.7, Segment(39.0, 84.7)),  # 0 / 39
        (Segment(39.0, 84.7), 45.7, CUT),  # 39 / 0
        (Segment(39.0, 84.7), 47.9, CUT),  # 36.8 / 2.2, of 2.285 accepted
        (Segment(39.0, 84.7), 43.5, CUT),  # 41.2 / 2.2
        (Segment(39.0, 84.7), 82.5, Segment(39.0, 84.7)),  # 2.2 / 36.8
        (Segment(0.0, 80.0), 80.0, Segment(0.0, 80.0)),  # 0 / 0: the uncut file
        (Segment(0.0, 80.0), 78.0, Segment(0.0, 80.0)),  # 2 / 2: a tie
        (Segment(0.0, 80.0), 300.0, Segment(0.0, 80.0)),  # 0 / 220
        (Segment(1.0, 11.0), 9.5, CUT),  # 1.5 / 0.5: both are accepted, the smaller wins
        (Segment(1.0, 11.0), 10.6, Segment(1.0, 11.0)),  # 0.4 / 0.6
        (Segment(100.0, 400.0), 314.0, CUT),  # 86 / 14, of 15 accepted
        (Segment(2.0, math.inf), 30.0, Segment(2.0, math.inf)),  # open-ended
        (None, 30.0, None),
    ],
)
def test_a_window_is_cut_unless_the_file_is_already_cut(
    window: Segment | None, file_duration_s: float, expected: Segment | None
) -> None:
    assert resolve_window(window, file_duration_s) == expected


@pytest.mark.parametrize(
    ("window", "file_duration_s", "problem"),
    [
        (
            Segment(39.0, 84.7),
            82.0,
            r"39 to 84\.7 s .* 82\.00 s: .* 2\.70 s .* 45\.70 s .* 2\.2[89] s",
        ),
        (Segment(39.0, 84.7), 48.1, "does not fit this file"),  # 36.6 / 2.4, of 2.285
        (Segment(100.0, 110.0), 30.0, "does not fit this file"),
        (Segment(100.0, 400.0), 316.0, "does not fit this file"),  # 84 / 16, of 15
        (Segment(5.0, 5.0), 30.0, "start < end"),
        (Segment(9.0, 5.0), 30.0, "start < end"),
        (Segment(math.nan, 5.0), 30.0, "start < end"),
    ],
)
def test_a_window_that_does_not_fit_the_file_is_refused(
    window: Segment, file_duration_s: float, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        resolve_window(window, file_duration_s)


@pytest.mark.parametrize(
    ("length_s", "fps", "expected"),
    [(0.5, 25.0, 12), (0.55, 25.0, 14), (0.0, 25.0, 0), (3, 1.0, 3)],
)
def test_the_lead_in_is_rounded_to_complete_frames(
    length_s: float, fps: float, expected: int
) -> None:
    assert num_lead_in_frames(LeadIn(length_s, "blank", 0), fps) == expected
    assert num_lead_in_frames(None, fps) == 0
