"""Examples joined with their clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch.utils.data import Dataset

from tvg.data.clip import ClipLoader
from tvg.types import GroundingExample, Segment, VideoClip


class Sample(NamedTuple):
    """One item of a dataset."""

    example: GroundingExample
    clip: VideoClip


class GroundingDataset(Dataset[Sample]):
    """Decodes the clip of an example when it is asked for.

    Args:
        examples: queries with known video files.
        loader: how to sample, decode and resize.
        memory_cache: keep every decoded clip (uint8) in memory, so that the queries of one video
            and later epochs decode nothing. Meant for small worlds: each worker has its own copy.
    """

    def __init__(
        self, *, examples: Sequence[GroundingExample], loader: ClipLoader, memory_cache: bool
    ) -> None:
        self.examples = list(examples)
        self.loader = loader
        self._cache: dict[tuple[str, Segment | None], VideoClip] | None = (
            {} if memory_cache else None
        )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample:
        example = self.examples[index]
        return Sample(example, self._clip(example))

    def _clip(self, example: GroundingExample) -> VideoClip:
        if example.video_path is None:
            raise ValueError(f"{example.qid}: no video file is known for {example.video!r}")
        if self._cache is None:
            return self.loader.load(example.video_path, example.window)
        key = (str(example.video_path), example.window)
        if key not in self._cache:
            self._cache[key] = self.loader.load(example.video_path, example.window)
        return self._cache[key]
