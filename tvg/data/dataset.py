"""A dataset that joins examples with their clips."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from torch.utils.data import Dataset

from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder, VideoError
from tvg.data.video.sampling import FrameSampling
from tvg.types import EncodedClip, GroundingExample, LeadIn, Segment, VideoClip

OnUnreadable = Literal["error", "replace", "leave_out"]


class ClipSource(Protocol):
    """A source of clips: a `ClipLoader`, or a cache in front of one."""

    @property
    def sampling(self) -> FrameSampling: ...

    @property
    def decoder(self) -> VideoDecoder: ...

    def load(
        self, path: Path, window: Segment | None = None, lead_in: LeadIn | None = None
    ) -> VideoClip | EncodedClip: ...


def uncached(*, loader: ClipLoader) -> ClipLoader:
    """Returns the loader itself: clips are decoded each time they are requested."""
    return loader


class Sample(NamedTuple):
    """A usable item of a dataset: an example and its clip."""

    example: GroundingExample
    clip: VideoClip | EncodedClip
    replaces: tuple[str, ...] = ()  # problems of the examples that this sample replaces


class LeftOut(NamedTuple):
    """An item that cannot be used: its clip cannot be read, or `problem_of` names a problem."""

    problem: str


def fitted_to(example: GroundingExample, duration_s: float) -> GroundingExample | None:
    """Returns the example with segment and hint cut at its clip's end.

    The hint is the coarse label of supervised training. A hint that starts after the end is
    dropped, and supervised training then uses the segment. Returns None if the segment starts after
    the end, and the same object if nothing needs to be cut.
    """
    segment, hint = example.segment, example.hint
    if segment is not None and segment.start_s >= duration_s:
        return None
    if hint is not None and hint.start_s >= duration_s:
        hint = None
    if segment is not None and segment.end_s > duration_s:
        segment = Segment(segment.start_s, duration_s)
    if hint is not None and hint.end_s > duration_s:
        hint = Segment(hint.start_s, duration_s)
    if segment is example.segment and hint is example.hint:
        return example
    return replace(example, segment=segment, hint=hint)


# Shared by all datasets of a process: cold start, GRPO and evaluation of a job read the same clips.
_CLIPS: dict[Hashable, VideoClip | EncodedClip] = {}


class GroundingDataset(Dataset[Sample | LeftOut]):
    """Loads the clip of each example on access.

    Args:
        examples: queries with known video files.
        loader: samples, decodes and resizes clips.
        memory_cache: keep every decoded clip (uint8) in memory. Other queries of the video, later
            epochs and other datasets of the process then reuse it. Meant for small datasets,
            because each worker has its own copy.
        on_unreadable: what to do if a clip cannot be read. "error" raises. "replace" uses the next
            example whose clip can be read, so that every training step keeps its size. "leave_out"
            skips the example, so that evaluation scores no example twice.
        problem_of: returns why a sample cannot be used, or None if it can. An unusable sample is
            treated like an unreadable clip. It is not called if `on_unreadable` is "error".
        fit_segments: cut segments and hints at the end of the loaded clip, for training. The
            annotated duration is ignored. If a segment starts after the end, the next example is
            used instead.
    """

    def __init__(
        self,
        *,
        examples: Sequence[GroundingExample],
        loader: ClipSource,
        memory_cache: bool,
        on_unreadable: OnUnreadable = "error",
        problem_of: Callable[[Sample], str | None] | None = None,
        fit_segments: bool = False,
    ) -> None:
        assert not (fit_segments and on_unreadable == "leave_out"), "fit_segments is for training"
        self.examples = list(examples)
        self.loader = loader
        self.memory_cache = memory_cache
        self.on_unreadable = on_unreadable
        self.problem_of = problem_of
        self.fit_segments = fit_segments
        self._problems: dict[Hashable, str] = {}  # do not wait again for a decoder that hung
        self._unusable: dict[int, str] = {}  # index -> problem: do not load the clip again

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample | LeftOut:
        problems: list[str] = []
        for step in range(len(self)):
            sample = self._sample_or_problem((index + step) % len(self))
            if not isinstance(sample, str):
                return sample._replace(replaces=tuple(problems))
            if self.on_unreadable == "leave_out":
                return LeftOut(sample)
            problems.append(sample)
        raise ValueError(
            f"none of the {len(self)} clips can be used; the first problem: {problems[0]}"
        )

    def _sample_or_problem(self, index: int) -> Sample | str:
        if index in self._unusable:
            return self._unusable[index]
        example = self.examples[index]
        clip = self._clip_or_problem(example)
        if isinstance(clip, str):
            return clip
        if self.fit_segments:
            fitted = fitted_to(example, clip.duration_s)
            if fitted is None:
                assert example.segment is not None
                self._unusable[index] = (
                    f"{example.qid}: the segment {example.segment.start_s:g} to "
                    f"{example.segment.end_s:g} s starts after the end of {example.video_path}, "
                    f"which is {clip.duration_s:.2f} s long"
                )
                return self._unusable[index]
            example = fitted
        sample = Sample(example, clip)
        if self.on_unreadable != "error" and self.problem_of is not None:
            problem = self.problem_of(sample)
            if problem is not None:
                self._unusable[index] = problem
                return problem
        return sample

    def _clip_or_problem(self, example: GroundingExample) -> VideoClip | EncodedClip | str:
        if self.on_unreadable == "error":
            return self._clip(example)
        key = (example.video_path, example.window, example.lead_in)
        if key not in self._problems:
            try:
                return self._clip(example)
            except VideoError as error:
                self._problems[key] = str(error)
        return self._problems[key]

    def _clip(self, example: GroundingExample) -> VideoClip | EncodedClip:
        path = example.video_path
        if path is None:
            raise ValueError(f"{example.qid}: no video file is known for {example.video!r}")
        if not self.memory_cache or not path.is_file():  # the loader reports a missing file
            return self.loader.load(path, example.window, example.lead_in)
        key = self._key(path, example.window, example.lead_in)
        if key not in _CLIPS:
            _CLIPS[key] = self.loader.load(path, example.window, example.lead_in)
        return _CLIPS[key]

    def _key(self, path: Path, window: Segment | None, lead_in: LeadIn | None) -> Hashable:
        """Returns the key of a clip: file state, window, lead-in and sampling."""
        state = path.stat()
        file = (str(path.absolute()), state.st_size, state.st_mtime_ns)
        return (file, window, lead_in, self.loader.sampling)
