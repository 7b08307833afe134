"""The text that stands for a clip in a prompt: how many placeholders, and what is between them.

Every family of models has its own: one run of placeholders, or one run a time step after the time
of its frames. The chat template writes a `mark` where the clip stands; a `ClipText` says what takes
the mark's place. The vision tower sees one clip in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

VIDEO_TOKEN = "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"

StepTimes = Sequence[Sequence[float]]  # of each time step, when its frames were taken, in seconds


class ClipText(Protocol):
    """Says what stands for a clip in a prompt."""

    @property
    def mark(self) -> str:
        """The text that the chat template writes once, for the clip."""

    @property
    def placeholder(self) -> str:
        """The token in whose places the clip's features go."""

    def __call__(self, *, num_steps: int, tokens_per_step: int, step_times_s: StepTimes) -> str:
        """The text that takes the mark's place.

        Args:
            num_steps: time steps of the clip's grid.
            tokens_per_step: placeholders of one of them.
            step_times_s: of each step, the times of its frames from the clip's start.
        """


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """All placeholders in one run; time is in the position ids alone (Qwen2.5-VL, Qwen2-VL)."""

    mark: str = VIDEO_TOKEN
    placeholder: str = VIDEO_TOKEN

    def __call__(self, *, num_steps: int, tokens_per_step: int, step_times_s: StepTimes) -> str:
        return self.placeholder * (num_steps * tokens_per_step)


@dataclass(frozen=True, kw_only=True)
class TimedSteps:
    """Each time step between a vision start and end of its own, after its time as text.

    The encoding of TimeLens (arXiv 2512.14698) for models whose own prompts hold no times. A step
    of Qwen's grid holds two frames; its text gives the time that `time_of` makes of theirs.

    Attributes:
        text: the time's text, with one field `time_s`: "{time_s:.1f}s".
        time_of: one time of those of a step's frames.
    """

    text: str
    time_of: Callable[[Sequence[float]], float]
    mark: str = f"{VISION_START}{VIDEO_TOKEN}{VISION_END}"
    placeholder: str = VIDEO_TOKEN

    def __call__(self, *, num_steps: int, tokens_per_step: int, step_times_s: StepTimes) -> str:
        assert len(step_times_s) == num_steps
        run = f"{VISION_START}{self.placeholder * tokens_per_step}{VISION_END}"
        times = [self.text.format(time_s=self.time_of(times)) for times in step_times_s]
        return "".join(time + run for time in times)


@dataclass(frozen=True, kw_only=True)
class NumberedFrames:
    """Each frame an image after its number, "Frame1: " (InternVL's own prompts).

    Attributes:
        text: its time's text after the number, with one field `time_s`; None: no time.
    """

    text: str | None
    mark: str = "<video>"
    placeholder: str = "<IMG_CONTEXT>"

    def __call__(self, *, num_steps: int, tokens_per_step: int, step_times_s: StepTimes) -> str:
        assert len(step_times_s) == num_steps
        image = f"<img>{self.placeholder * tokens_per_step}</img>"
        times = [(self.text or "").format(time_s=first_time(times)) for times in step_times_s]
        return "\n".join(f"Frame{n}: {time}{image}" for n, time in enumerate(times, start=1))


def first_time(times_s: Sequence[float]) -> float:
    """When a step's first frame was taken: where the step begins."""
    return times_s[0]


def middle_time(times_s: Sequence[float]) -> float:
    """Halfway between a step's first and last frame (Qwen3-VL's own prompts)."""
    return fmean((times_s[0], times_s[-1]))


def qwen(frame_times: str | None) -> ClipText:
    """Qwen2.5-VL and Qwen2-VL: one run, or timed steps where the prompt asks for them."""
    return OneRun() if frame_times is None else TimedSteps(text=frame_times, time_of=first_time)


def qwen3(frame_times: str | None) -> ClipText:
    """Qwen3-VL: timed steps in its own words, or in the prompt's."""
    return TimedSteps(text=frame_times or "<{time_s:.1f} seconds>", time_of=middle_time)


def internvl(frame_times: str | None) -> ClipText:
    """InternVL: numbered frames, and their times where the prompt asks for them."""
    return NumberedFrames(text=frame_times)


# Class of the checkpoint's processor -> what stands for a clip, given `prompt.frame_times`.
CLIP_TEXTS: Mapping[str, Callable[[str | None], ClipText]] = {
    "Qwen3VLProcessor": qwen3,
    "InternVLProcessor": internvl,
}


def clip_text_of(processor: Any, frame_times: str | None) -> ClipText:
    """The text that represents a clip in prompts of the processor's family.

    Args:
        processor: of a checkpoint.
        frame_times: `prompt.frame_times`; None: the family's own way.
    """
    return CLIP_TEXTS.get(type(processor).__name__, qwen)(frame_times)
