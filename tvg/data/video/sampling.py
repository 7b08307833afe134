"""Computes which frames of a clip are shown and at what size.

The results equal those of qwen-vl-utils 0.0.14 (`vision_process.py`: `smart_nframes`,
`calculate_video_frame_range`, `smart_resize`, `fetch_video`) for all input that it accepts.
There are three additions:

- A window of fewer frames than `frame_factor` repeats its frames, so that even a one-frame clip
  fills a temporal patch.
- A file may already be cut to its window.
- A clip may have a lead-in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tvg.types import LeadIn, Segment

MAX_ASPECT_RATIO = 200  # qwen-vl-utils refuses longer strips
CAP_SLACK = 1.05  # the budget of a long clip allows each frame at least 1.05 * min_pixels
# Tolerance between file and window: cutting tools round to key frames, annotators to seconds.
WINDOW_SLACK_S, WINDOW_SLACK_SHARE = 2.0, 0.05
LITERAL_SLACK_S = 1.0  # users round a file's end to whole seconds


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """The number and size of sampled frames; the defaults are those of Qwen2.5-VL.

    Attributes:
        fps: requested frames per second.
        min_frames: minimum number of frames, unless the file has fewer.
        max_frames: maximum number of frames; longer clips are sampled at a lower rate.
        frame_factor: the number of frames is a multiple of this (the model's temporal patch).
        min_pixels: minimum pixels of a resized frame.
        max_pixels: maximum pixels of a resized frame.
        total_pixels: budget of the whole clip; `frame_factor` frames share one temporal patch.
        resize_factor: sides are multiples of this (patch size times spatial merge).

    Raises:
        ValueError: a value is out of range, or the limits exclude each other.
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    frame_factor: int = 2
    min_pixels: int = 16 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    total_pixels: int = 3584 * 28 * 28
    resize_factor: int = 28

    def __post_init__(self) -> None:
        for name in ("fps", "min_frames", "max_frames", "frame_factor"):
            _require_positive(name, getattr(self, name))
        for name in ("min_pixels", "max_pixels", "total_pixels", "resize_factor"):
            _require_positive(name, getattr(self, name))
        if self._min_count > self._max_count:
            raise ValueError(
                f"min_frames must not exceed max_frames, both in multiples of frame_factor="
                f"{self.frame_factor}: got min_frames={self.min_frames}, "
                f"max_frames={self.max_frames}"
            )
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels must not exceed max_pixels: got {self.min_pixels} and "
                f"{self.max_pixels}"
            )

    @property
    def _min_count(self) -> int:
        return math.ceil(self.min_frames / self.frame_factor) * self.frame_factor

    @property
    def _max_count(self) -> int:
        return self.max_frames // self.frame_factor * self.frame_factor


def num_sampled_frames(total_frames: int, video_fps: float, sampling: FrameSampling) -> int:
    """Returns how many of the `total_frames` frames of a window to show.

    The result is a multiple of `frame_factor`. For a window of fewer frames it is `frame_factor`,
    and the frames are repeated.

    Raises:
        ValueError: `total_frames` or `video_fps` is not positive.
    """
    _check_stream(total_frames, video_fps)
    if total_frames < sampling.frame_factor:
        return sampling.frame_factor
    wanted = total_frames / video_fps * sampling.fps
    wanted = min(max(wanted, sampling._min_count), sampling._max_count, total_frames)
    return math.floor(wanted / sampling.frame_factor) * sampling.frame_factor


def resolve_window(window: Segment | None, file_duration_s: float) -> Segment | None:
    """Returns the window to cut out of a file; None means to show the whole file.

    Annotations state a window of the original video, but the file is often already cut to that
    window. The file's duration decides between the two. The error of an uncut file is
    max(0, end - duration); the error of a cut file is |duration - window length|. The case with the
    smaller error is chosen (the uncut file at a tie). This error may be at most 2 s or 5 % of the
    window, whichever is larger.

    Raises:
        ValueError: the window does not have start < end, or both errors are too large.
    """
    if window is None:
        return None
    _check_forward(window)
    slack_s = max(WINDOW_SLACK_S, WINDOW_SLACK_SHARE * window.length_s)
    beyond_s = max(0.0, window.end_s - file_duration_s)
    difference_s = abs(file_duration_s - window.length_s)
    if beyond_s <= min(difference_s, slack_s):
        return window
    if difference_s <= slack_s:
        return None
    raise ValueError(
        f"the clip window {window.start_s:g} to {window.end_s:g} s does not fit this file "
        f"of {file_duration_s:.2f} s: as a part of the file, the window would end {beyond_s:.2f} s "
        "after the file's end; if the file is already cut to the window, it should be "
        f"{window.length_s:.2f} s long (accepted difference: {slack_s:.2f} s)"
    )


def literal_window(window: Segment, file_duration_s: float) -> Segment:
    """Returns a window that a user states for this file; it may end up to 1 s after the file.

    Use `resolve_window` for annotations: it assumes that a file as long as the window is already
    cut.

    Raises:
        ValueError: the window does not have start < end, or is not inside the file.
    """
    _check_forward(window)
    start_s, end_s = window
    is_inside = 0 <= start_s < file_duration_s and end_s <= file_duration_s + LITERAL_SLACK_S
    if not is_inside:
        raise ValueError(
            f"expected a part of the file, 0 to {file_duration_s:.2f} s, got {start_s:g} to "
            f"{end_s:g} s"
        )
    return Segment(start_s, min(end_s, file_duration_s))


def num_lead_in_frames(lead_in: LeadIn | None, video_fps: float) -> int:
    """Returns the length of the lead-in in frames at the file's rate, rounded.

    Raises:
        ValueError: the length is negative or not finite.
    """
    if lead_in is None:
        return 0
    if not 0 <= lead_in.length_s < math.inf:
        raise ValueError(f"a lead-in must be 0 s long or longer: got {lead_in.length_s} s")
    return round(lead_in.length_s * video_fps)


def frame_range(total_frames: int, video_fps: float, window: Segment | None) -> tuple[int, int]:
    """Returns the first and last frame inside `window` (both inclusive), or of the whole file.

    A window that extends beyond the file is cut at the file's ends. Unlike in qwen-vl-utils, a
    window of exactly one frame is accepted.

    Raises:
        ValueError: the window does not have start < end, or contains no frame of the file.
    """
    _check_stream(total_frames, video_fps)
    if window is None:
        return 0, total_frames - 1
    _check_forward(window)
    start_s, end_s = window
    length_s = total_frames / video_fps
    first = math.ceil(max(0.0, min(start_s, length_s)) * video_fps)
    last = min(math.floor(max(0.0, min(end_s, length_s)) * video_fps), total_frames - 1)
    if first > last or end_s < 0:
        raise ValueError(
            f"the clip window {start_s} to {end_s} s holds no frame: the file has {total_frames} "
            f"frames at {video_fps:.3f} fps = {length_s:.2f} s"
        )
    return first, last


def frame_indices(first: int, last: int, num: int) -> list[int]:
    """Returns `num` indices spread evenly from `first` to `last`, both included.

    Repeats frames if `num` exceeds their number.
    """
    assert 0 <= first <= last, (first, last)
    assert num > 0, num
    # float32 and half-to-even rounding, as in qwen-vl-utils; exact arithmetic differs at ties.
    spread = torch.linspace(first, last, num, dtype=torch.float32)
    return spread.round().long().tolist()


def window_bounds(
    total_frames: int, video_fps: float, window: Segment | None
) -> tuple[float, float]:
    """Returns start and end of the shown part in seconds of the file, cut at the file's ends."""
    length_s = total_frames / video_fps
    if window is None:
        return 0.0, length_s
    return max(0.0, window.start_s), min(window.end_s, length_s)


def max_pixels_per_frame(num_frames: int, sampling: FrameSampling) -> float:
    """Returns the maximum pixels of a frame if the clip has `num_frames` frames.

    The value is not rounded: `smart_resize` takes its square root, so rounding could change a side.
    """
    assert num_frames > 0, num_frames
    share = sampling.total_pixels / num_frames * sampling.frame_factor
    return min(sampling.max_pixels, max(share, int(sampling.min_pixels * CAP_SLACK)))


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: float, max_pixels: float
) -> tuple[int, int]:
    """Returns (height, width): multiples of `factor` near the aspect ratio and within the limits.

    Raises:
        ValueError: a side is not positive, one side is over 200 times the other, or the limits
            exclude each other.
    """
    if height <= 0 or width <= 0:
        raise ValueError(f"a frame must have positive sides: got {width}x{height}")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"a frame's longer side may be at most {MAX_ASPECT_RATIO} times the shorter: "
            f"got {width}x{height}"
        )
    if max_pixels < min_pixels:
        raise ValueError(
            f"min_pixels must not exceed max_pixels: got {min_pixels} and {max_pixels}"
        )
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = math.floor(height / shrink / factor) * factor
        new_width = math.floor(width / shrink / factor) * factor
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    # qwen-vl-utils lets a side of a long strip become 0 here and fails later, in the resize.
    return max(factor, new_height), max(factor, new_width)


def _check_forward(window: Segment) -> None:
    # The negated comparison also refuses NaN.
    if not window.start_s < window.end_s:
        raise ValueError(
            f"a clip window must have start < end, in seconds: got {window.start_s} to "
            f"{window.end_s}"
        )


def _check_stream(total_frames: int, video_fps: float) -> None:
    if total_frames <= 0:
        raise ValueError(f"a video must have at least one frame: got {total_frames}")
    if not (0 < video_fps < math.inf):
        raise ValueError(f"a video must have a positive frame rate: got {video_fps}")


def _require_positive(name: str, value: float) -> None:
    if not (0 < value < math.inf):
        raise ValueError(f"{name} must be positive: got {value}")
