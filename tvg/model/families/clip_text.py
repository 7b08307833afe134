"""Writes the text that represents a clip in a prompt: placeholder tokens, and text between them.

The format depends on the model family. A clip is either one run of placeholders, or one run per
time step with the time of its frames before it. The chat template writes a `mark` at the clip's
position, and a `ClipText` replaces the mark. The vision tower's input is the same in all formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

VIDEO_TOKEN = "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
STEP_TOKENS = 12  # estimated number of text tokens per time step

StepTimes = Sequence[Sequence[float]]  # for each time step, the times of its frames in seconds


class ClipText(Protocol):
    """Writes the text that represents a clip in a prompt."""

    @property
    def mark(self) -> str:
        """Text that the chat template writes at the clip's position."""

    @property
    def placeholder(self) -> str:
        """Token whose embeddings are replaced by the clip's features."""

    @property
    def step_tokens(self) -> int:
        """Estimated number of text tokens per time step, without placeholders."""

    def __call__(self, *, num_steps: int, tokens_per_step: int, step_times_s: StepTimes) -> str:
        """Returns the text that replaces the mark.

        Args:
            num_steps: time steps of the clip's grid.
            tokens_per_step: placeholders per time step.
            step_times_s: for each step, the times of its frames from the clip's start.
        """


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """One run of placeholders; only the position ids encode time."""

    mark: str = VIDEO_TOKEN
    placeholder: str = VIDEO_TOKEN
    step_tokens: int = 0

    def __call__(self, *, num_steps: int, tokens_per_step: int, step_times_s: StepTimes) -> str:
        return self.placeholder * (num_steps * tokens_per_step)


@dataclass(frozen=True, kw_only=True)
class TimedSteps:
    """Writes each time step as its time, vision start, placeholders and vision end.

    TimeLens (arXiv 2512.14698) uses this encoding for models whose released prompt format contains
    no times. A step of Qwen's grid covers two frames. `time_of` computes the step's time from the
    times of these frames.

    Attributes:
        text: format of the time, with one field `time_s`, e.g. "{time_s:.1f}s".
        time_of: computes a step's time from the times of its frames.
    """

    text: str
    time_of: Callable[[Sequence[float]], float]
    mark: str = f"{VISION_START}{VIDEO_TOKEN}{VISION_END}"
    placeholder: str = VIDEO_TOKEN
    step_tokens: int = STEP_TOKENS

    def __call__(self, *, num_steps: int, tokens_per_step: int, step_times_s: StepTimes) -> str:
        assert len(step_times_s) == num_steps
        run = f"{VISION_START}{self.placeholder * tokens_per_step}{VISION_END}"
        times = [self.text.format(time_s=self.time_of(times)) for times in step_times_s]
        return "".join(time + run for time in times)


@dataclass(frozen=True, kw_only=True)
class NumberedFrames:
    """Writes each frame as a numbered image, "Frame1: " (InternVL's released prompt format).

    Attributes:
        text: format of the time after the number, with one field `time_s`; None writes no time.
    """

    text: str | None
    mark: str = "<video>"
    placeholder: str = "<IMG_CONTEXT>"
    step_tokens: int = STEP_TOKENS

    def __call__(self, *, num_steps: int, tokens_per_step: int, step_times_s: StepTimes) -> str:
        assert len(step_times_s) == num_steps
        image = f"<img>{self.placeholder * tokens_per_step}</img>"
        times = [(self.text or "").format(time_s=first_time(times)) for times in step_times_s]
        return "\n".join(f"Frame{n}: {time}{image}" for n, time in enumerate(times, start=1))


def first_time(times_s: Sequence[float]) -> float:
    """Returns the time of a step's first frame."""
    return times_s[0]


def middle_time(times_s: Sequence[float]) -> float:
    """Returns the midpoint of a step's first and last frame, as in Qwen3-VL's release."""
    return fmean((times_s[0], times_s[-1]))
