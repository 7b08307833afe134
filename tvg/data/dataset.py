"""Examples joined with their clips."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset

from tvg.data.clip import ClipLoader
from tvg.types import GroundingExample, Segment, VideoClip


class Sample(NamedTuple):
    """One item of a dataset."""

    example: GroundingExample
    clip: VideoClip


# One for the whole process: the stages of a job (cold start, GRPO, evaluation) read the same clips.
_CLIPS: dict[Hashable, VideoClip] = {}


class GroundingDataset(Dataset[Sample]):
    """Decodes the clip of an example when it is asked for.

    Args:
        examples: queries with known video files.
        loader: how to sample, decode and resize.
        memory_cache: keep every decoded clip (uint8) in memory, so that the queries of one video
            and later epochs decode nothing, nor do other data sets of this process. Meant for small
            worlds: each worker has its own copy.
    """

    def __init__(
        self, *, examples: Sequence[GroundingExample], loader: ClipLoader, memory_cache: bool
    ) -> None:
        self.examples = list(examples)
        self.loader = loader
        self.memory_cache = memory_cache

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample:
        example = self.examples[index]
        return Sample(example, self._clip(example))

    def _clip(self, example: GroundingExample) -> VideoClip:
        if example.video_path is None:
            raise ValueError(f"{example.qid}: no video file is known for {example.video!r}")
        if (
            not self.memory_cache or not example.video_path.is_file()
        ):  # the loader says what is wrong
            return self.loader.load(example.video_path, example.window)
        key = self._key(example.video_path, example.window)
        if key not in _CLIPS:
            _CLIPS[key] = self.loader.load(example.video_path, example.window)
        return _CLIPS[key]

    def _key(self, path: Path, window: Segment | None) -> Hashable:
        """Tells apart all that decides a clip: the file as it is now, the window, the sampling."""
        state = path.stat()
        file = (str(path.absolute()), state.st_size, state.st_mtime_ns)
        return (file, window, self.loader.sampling)
