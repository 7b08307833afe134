"""The time at which a job has to stop, set by the user or by Slurm."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

AUTO = "auto"
SLURM_END = "SLURM_JOB_END_TIME"  # seconds since 1970; set by Slurm 22.05 and later
_DURATION = re.compile(r"([0-9]+):([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})")


class Deadline:
    """Tells a loop when to stop so that the next part of its work still ends in time.

    The longest time between two calls of `is_near` is the estimate for the next part. It includes
    everything that happens in between, such as saving a checkpoint.

    Args:
        end_s: the deadline, in seconds since 1970.
        margin_s: time to keep for the work after the loop, in seconds.
        clock: returns the current time in seconds since 1970.
    """

    def __init__(
        self, end_s: float, *, margin_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.end_s = end_s
        self.margin_s = margin_s
        self._clock = clock
        self._last_s: float | None = None
        self._longest_s = 0.0

    def is_near(self) -> bool:
        """Returns whether another part of the work might end after the deadline."""
        now_s = self._clock()
        if self._last_s is not None:
            self._longest_s = max(self._longest_s, now_s - self._last_s)
        self._last_s = now_s
        return now_s + self._longest_s + self.margin_s >= self.end_s


def deadline_problems(deadline: Any, margin_s: Any) -> list[str]:
    """Returns what is wrong with the keys `train.deadline` and `train.deadline_margin_s`."""
    problems = []
    if not (deadline in (None, AUTO) or _seconds(deadline) is not None):
        problems.append(
            "train.deadline: expected null, auto, or a time from the start of the command as "
            f"days:hours:minutes:seconds, such as 00:11:50:00, got {deadline!r}"
        )
    is_number = isinstance(margin_s, int | float) and not isinstance(margin_s, bool)
    if not (is_number and margin_s >= 0):
        problems.append(f"train.deadline_margin_s: expected seconds >= 0, got {margin_s!r}")
    return problems


def make_deadline(
    deadline: str | None, *, margin_s: float, environment: Mapping[str, str]
) -> Deadline | None:
    """Returns the deadline of a job that starts now; None if it has none.

    Args:
        deadline: None: no deadline; "auto": the end of the Slurm job, if there is one; otherwise a
            time from now, as `days:hours:minutes:seconds`.
        margin_s: as for `Deadline`.
        environment: environment variables.
    """
    if deadline is None:
        return None
    if deadline == AUTO:
        end = environment.get(SLURM_END, "")
        return Deadline(float(end), margin_s=margin_s) if end.isdecimal() else None
    seconds = _seconds(deadline)
    assert seconds is not None, deadline
    return Deadline(time.time() + seconds, margin_s=margin_s)


def _seconds(duration: Any) -> int | None:
    found = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if found is None:
        return None
    days, hours, minutes, seconds = map(int, found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
