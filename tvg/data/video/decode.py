"""Defines the interface for reading the frames of a video file.

`VideoDecoder.open` opens one file. The opened file provides its properties, and frames by index in
bounded chunks, so that a long clip is never completely in memory at full size. Two backends return
the same pixels: decord (`tvg.data.video.decord_decoder`) and PyAV (`tvg.data.video.pyav_decoder`).

This module must not import torch, because the decoding process of `tvg.data.video.time_limit`
imports it and has to start fast.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tvg.core.printable import printable_line
from tvg.data.video.timeline import VariableRate

Frames = NDArray[np.uint8]  # [t, H, W, 3], RGB

CHUNK_BYTES = 32 * 2**20  # maximum size of the decoded frames in one chunk


class VideoError(ValueError):
    """A video that cannot be used; the message names the file and the problem."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(printable_line(f"{os.fspath(path)}: {problem}"))
        self.path = os.fspath(path)
        self.problem = problem

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return type(self), (self.path, self.problem)  # the default would pass only the message


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Size and timing of a video file.

    A file is sampled on `num_steps` time steps, `step_fps` per second. At a constant frame rate,
    each step is a frame. For variable rates see `tvg.data.video.timeline`.
    """

    num_frames: int
    fps: float  # average over the file
    height: int  # after the rotation that the file states
    width: int
    variable: VariableRate | None = None  # None: the rate is constant

    @property
    def duration_s(self) -> float:
        return self.num_steps / self.step_fps

    @property
    def num_steps(self) -> int:
        return self.num_frames if self.variable is None else self.variable.num_steps

    @property
    def step_fps(self) -> float:
        return self.fps if self.variable is None else self.variable.step_fps

    def frame_indices(self, steps: Sequence[int]) -> list[int]:
        """Returns the frame on screen at each step."""
        return list(steps) if self.variable is None else self.variable.frame_indices(steps)


class OpenVideo(Protocol):
    """One opened file."""

    @property
    def info(self) -> VideoInfo: ...

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        """Yields the frames of `indices`, in their order, in chunks of one or more.

        Indices ascend (repeats allowed). Raises VideoError if a frame cannot be read.
        """
        ...


class VideoDecoder(Protocol):
    """Opens video files. A problem with a file raises VideoError, which names the file.

    Attributes:
        memory_mib: memory in MiB that a separate decoding process may use; None: no limit.
    """

    memory_mib: int | None = None

    def open(self, path: str | os.PathLike[str]) -> AbstractContextManager[OpenVideo]:
        """Opens a complete video; raises VideoError for anything else."""
        ...

    def import_library(self) -> None:
        """Imports the decoding library, outside any clip's time limit."""
        return None

    def probe(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Returns the size and timing of a file."""
        with self.open(path) as video:
            return video.info

    def read(self, path: str | os.PathLike[str], indices: Sequence[int]) -> Frames:
        """Returns the frames of ascending `indices`: uint8 [T, H, W, 3]."""
        with self.open(path) as video:
            check_indices(path, indices, video.info.num_frames)
            return np.concatenate(list(video.frames(indices)))


def check_file(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a readable, non-empty regular file; raises VideoError otherwise.

    The decoders' own messages do not distinguish these cases.
    """
    path = Path(path)
    expected = "expected a video file"
    try:
        status = path.stat()
    except FileNotFoundError:
        raise VideoError(path, f"no such file; {expected}") from None
    except OSError as error:
        raise VideoError(path, f"cannot be reached ({error.strerror}); {expected}") from None
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(path, f"is a directory; {expected}")
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe or a device would block.
        raise VideoError(path, f"is not a regular file; {expected}")
    if status.st_size == 0:
        raise VideoError(path, f"is empty (0 bytes); {expected}")
    if not os.access(path, os.R_OK):
        raise VideoError(path, f"permission denied; {expected} that this user may read")
    return path


def check_indices(path: str | os.PathLike[str], indices: Sequence[int], num_frames: int) -> None:
    """Raises VideoError unless `indices` ascend (repeats allowed) within the file."""
    ascending = all(a <= b for a, b in pairwise(indices))
    if not indices or not ascending or indices[0] < 0 or indices[-1] >= num_frames:
        shown = list(indices) if len(indices) <= 8 else [*indices[:4], "...", *indices[-4:]]
        raise VideoError(
            path, f"frame indices must ascend within 0 to {num_frames - 1}: got {shown}"
        )


def chunks(indices: Sequence[int], info: VideoInfo) -> Iterator[Sequence[int]]:
    """Splits `indices` into chunks of at most `CHUNK_BYTES`, but of at least one frame."""
    size = max(1, CHUNK_BYTES // (info.height * info.width * 3))
    for begin in range(0, len(indices), size):
        yield indices[begin : begin + size]
