"""When the frames of a variable-rate file are shown, and the steps of time that it is sampled on.

Time 0 is the moment at which the first frame appears, in every file: a video that starts later than
its audio is not padded, and frames that an edit list hides do not count. The file ends when its
last frame does, however long the audio is.

The rate is constant where no frame starts more than half a frame away from its number divided by
the stated rate. This covers the rounding of containers (1/1000 s in Matroska), rates such as
30000/1001 and small jitter; such a file is sampled by frame numbers, as qwen-vl-utils does it.

Any other file is sampled as its constant-rate copy would be: one step per frame at the file's
usual rate, and at each step the frame that is on screen then. Frame times are presentation times.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_SHIFT_FRAMES = 0.5  # of a frame in a constant-rate file, from number / rate
MAX_END_SHIFT_FRAMES = 1.5  # of the end: the last frame's duration is the least certain
# Steps per second: a slide show is sampled inside its slides too, a burst of frames not 1000 times.
MIN_STEP_FPS, MAX_STEP_FPS = 25.0, 120.0
USUAL_INTERVAL_SLACK = 0.1  # intervals this near the median are averaged


@dataclass(frozen=True, kw_only=True)
class VariableRate:
    """The times of a variable-rate file.

    Attributes:
        times_s: when each frame appears, ascending from 0. An array: a list would take four times
            the memory, and preparation holds those of all files.
        num_steps: steps of equal length that fill the file.
        step_fps: steps per second.
    """

    times_s: array[float]
    num_steps: int
    step_fps: float

    @property
    def duration_s(self) -> float:
        return self.num_steps / self.step_fps

    def frame_indices(self, steps: Sequence[int]) -> list[int]:
        """Returns the frame on screen at each step: the last that starts before the step's middle.

        Half a step of slack makes jitter and rounding harmless.
        """
        moments_s = (np.asarray(steps, dtype=np.float64) + 0.5) / self.step_fps
        places = np.searchsorted(np.frombuffer(self.times_s, np.float64), moments_s, side="left")
        return [max(0, int(place) - 1) for place in places]

    def appearance_times_s(self, steps: Sequence[int]) -> list[float]:
        """Returns when the frame on screen at each step appeared."""
        return [self.times_s[index] for index in self.frame_indices(steps)]


def variable_rate(
    times_s: Sequence[float], *, last_frame_s: float | None, stated_fps: float
) -> VariableRate | None:
    """Returns the times of a file whose rate varies; None: it is constant, at the stated rate.

    Args:
        times_s: presentation time of each frame, ascending, from any origin.
        last_frame_s: how long the last frame is shown; None: as long as frames usually are.
        stated_fps: the rate that the file states; 0: none.
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
    """Returns the mean of the intervals about the median: exact where a container rounds times."""
    intervals_s = intervals_s[intervals_s > 0]
    if not len(intervals_s):
        return None
    median_s = float(np.median(intervals_s))
    near = np.abs(intervals_s - median_s) <= USUAL_INTERVAL_SLACK * median_s
    return float(intervals_s[near].mean()) if near.any() else median_s
