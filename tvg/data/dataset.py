"""Examples joined with their clips."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from torch.utils.data import Dataset

from tvg.data.clip import ClipLoader
from tvg.data.decode import VideoDecoder, VideoError
from tvg.data.sampling import FrameSampling
from tvg.types import EncodedClip, GroundingExample, LeadIn, Segment, VideoClip

OnUnreadable = Literal["error", "replace", "leave_out"]


class ClipSource(Protocol):
    """What gives the clip of a file: a `ClipLoader`, or a cache before one."""

    @property
    def sampling(self) -> FrameSampling: ...

    @property
    def decoder(self) -> VideoDecoder: ...

    def load(
        self, path: Path, window: Segment | None = None, lead_in: LeadIn | None = None
    ) -> VideoClip | EncodedClip: ...


def uncached(*, loader: ClipLoader) -> ClipLoader:
    """The loader alone: every clip is decoded whenever it is asked for."""
    return loader


class Sample(NamedTuple):
    """One item of a dataset."""

    example: GroundingExample
    clip: VideoClip | EncodedClip
    replaces: tuple[str, ...] = ()  # why the examples in whose place it stands cannot be shown


class LeftOut(NamedTuple):
    """An item whose clip cannot be read."""

    problem: str


# One for the whole process: the stages of a job (cold start, GRPO, evaluation) read the same clips.
_CLIPS: dict[Hashable, VideoClip | EncodedClip] = {}


class GroundingDataset(Dataset[Sample | LeftOut]):
    """Decodes the clip of an example when it is asked for.

    Args:
        examples: queries with known video files.
        loader: how to sample, decode and resize.
        memory_cache: keep every decoded clip (uint8) in memory, so that the queries of one video
            and later epochs decode nothing, nor do other data sets of this process. Meant for small
            worlds: each worker has its own copy.
        on_unreadable: a clip that cannot be read is an error; or the next example whose clip can
            be read takes its place (training: every step keeps its size); or it is left out
            (evaluation: nothing is scored twice).
    """

    def __init__(
        self,
        *,
        examples: Sequence[GroundingExample],
        loader: ClipSource,
        memory_cache: bool,
        on_unreadable: OnUnreadable = "error",
    ) -> None:
        self.examples = list(examples)
        self.loader = loader
        self.memory_cache = memory_cache
        self.on_unreadable = on_unreadable
        self._problems: dict[Hashable, str] = {}  # a decoder that hung once is not waited for again

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample | LeftOut:
        if self.on_unreadable == "error":
            return Sample(self.examples[index], self._clip(self.examples[index]))
        problems: list[str] = []
        for step in range(len(self)):
            example = self.examples[(index + step) % len(self)]
            clip = self._clip_or_problem(example)
            if not isinstance(clip, str):
                return Sample(example, clip, tuple(problems))
            if self.on_unreadable == "leave_out":
                return LeftOut(clip)
            problems.append(clip)
        raise ValueError(f"none of the {len(self)} clips can be read; the first: {problems[0]}")

    def _clip_or_problem(self, example: GroundingExample) -> VideoClip | EncodedClip | str:
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
        if not self.memory_cache or not path.is_file():  # the loader says what is wrong
            return self.loader.load(path, example.window, example.lead_in)
        key = self._key(path, example.window, example.lead_in)
        if key not in _CLIPS:
            _CLIPS[key] = self.loader.load(path, example.window, example.lead_in)
        return _CLIPS[key]

    def _key(self, path: Path, window: Segment | None, lead_in: LeadIn | None) -> Hashable:
        """Tells apart all that decides a clip: the file as it is now, its part, the sampling."""
        state = path.stat()
        file = (str(path.absolute()), state.st_size, state.st_mtime_ns)
        return (file, window, lead_in, self.loader.sampling)
