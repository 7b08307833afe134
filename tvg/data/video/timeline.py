"""Computes frame times of variable-rate files and the time steps on which they are sampled.

Time 0 is when the first frame appears. A video that starts later than its audio is therefore not
padded, and frames hidden by an edit list do not count. The file ends with its last frame, even if
the audio is longer.

The rate is constant if every frame starts within half a frame of its number divided by the stated
rate. This allows for the rounding of containers (1/1000 s in Matroska), rates such as 30000/1001
and small jitter. Such a file is sampled by frame numbers, as in qwen-vl-utils.

Any other file is sampled like a constant-rate copy. The copy has one step per frame at the file's
usual rate and shows the frame that is on screen at each step. Frame times are presentation times.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_SHIFT_FRAMES = 0.5  # tolerance of a frame's time in a constant-rate file
MAX_END_SHIFT_FRAMES = 1.5  # tolerance of the end: the last frame's duration is less reliable
# Limits of steps per second: several steps for each slide of a slide show, not too many in bursts.
MIN_STEP_FPS, MAX_STEP_FPS = 25.0, 120.0
USUAL_INTERVAL_SLACK = 0.1  # intervals this near the median are averaged


@dataclass(frozen=True, kw_only=True)
class VariableRate:
    """Frame times and time steps of a variable-rate file.

    Attributes:
        times_s: time at which each frame appears, ascending from 0. It is an array because a list
            takes four times the memory, and preparation keeps the times of all files.
        num_steps: number of equal steps that cover the file.
        step_fps: steps per second.
    """

    times_s: array[float]
    num_steps: int
    step_fps: float

    @property
    def duration_s(self) -> float:
        return self.num_steps / self.step_fps

    def frame_indices(self, steps: Sequence[int]) -> list[int]:
        """Returns the frame on screen at each step: the last one that starts before the midpoint.

        Using the midpoint of a step tolerates jitter and rounding.
        """
        moments_s = (np.asarray(steps, dtype=np.float64) + 0.5) / self.step_fps
        places = np.searchsorted(np.frombuffer(self.times_s, np.float64), moments_s, side="left")
        return [max(0, int(place) - 1) for place in places]

    def appearance_times_s(self, steps: Sequence[int]) -> list[float]:
        """Returns the time at which the frame on screen at each step appeared."""
        return [self.times_s[index] for index in self.frame_indices(steps)]


def variable_rate(
    times_s: Sequence[float], *, last_frame_s: float | None, stated_fps: float
) -> VariableRate | None:
    """Returns the times of a variable-rate file, or None if it has the stated constant rate.

    Args:
        times_s: presentation time of each frame, ascending, from any origin.
        last_frame_s: duration of the last frame; None uses the usual interval.
        stated_fps: frame rate stated in the file; 0 if none.
    """
    times = np.asarray(times_s, dtype=np.float64)
    times = times - times[0]
    usual_s = _usual_interval_s(np.diff(times))
    if usual_s is None:
        usual_s = last_frame_s or (1 / stated_fps if stated_fps > 0 else 1 / MIN_STEP_FPS)
    duration_s = float(times[-1]) + (last_frame_s or usual_s)
    if stated_fps > 0:
        shifts = np.abs(times * stated_fps - np.arange(len(times)))
        end_shift = abs(duration_s * stated_fps - len(times))
        if shifts.max() <= MAX_SHIFT_FRAMES and end_shift <= MAX_END_SHIFT_FRAMES:
            return None
    step_fps = min(max(1 / usual_s, MIN_STEP_FPS), MAX_STEP_FPS)
    num_steps = max(1, round(duration_s * step_fps))
    return VariableRate(
        times_s=array("d", times.tobytes()), num_steps=num_steps, step_fps=num_steps / duration_s
    )


def _usual_interval_s(intervals_s: np.ndarray) -> float | None:
    """Returns the mean of the intervals near the median; this averages out rounded times."""
    intervals_s = intervals_s[intervals_s > 0]
    if not len(intervals_s):
        return None
    median_s = float(np.median(intervals_s))
    near = np.abs(intervals_s - median_s) <= USUAL_INTERVAL_SLACK * median_s
    return float(intervals_s[near].mean()) if near.any() else median_s
