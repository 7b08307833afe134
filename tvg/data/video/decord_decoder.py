"""Decodes with decord (the maintained wheel is called decord2; the module is `decord`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tvg.data.video.decode import (
    Frames,
    OpenVideo,
    VideoDecoder,
    VideoError,
    VideoInfo,
    check_file,
    chunks,
)
from tvg.data.video.media import NO_LIMITS, MediaLimits, media_url
from tvg.data.video.packets import FileIndex, inspect_file
from tvg.data.video.pyav_decoder import PyAVVideo


class DecordDecoder(VideoDecoder):
    """Decodes with decord, except for files that decord 3.4 handles incorrectly and PyAV decodes.

    PyAV first reads the packets of a file and decodes its first frame. This detects truncated
    files, whose first part decord reads without an error. It also detects the files that PyAV must
    decode:

    - With an edit list, decord counts the hidden frames and repeats the last frame in their place.
    - At open groups of pictures and in containers without an index (MPEG-TS, AVI), it seeks to
      wrong frames.
    - It cannot copy frames of some narrow videos (such as 48 or 96 pixels wide).

    decord also does not report damaged frames. PyAV therefore decodes the frames of each clip
    first, without converting them, which adds about 60 % to the time of a clip.

    Args:
        num_threads: decoding threads; 0 lets the library choose.
        limits: files that exceed them are refused.
    """

    def __init__(self, *, num_threads: int, limits: MediaLimits = NO_LIMITS) -> None:
        self.num_threads = num_threads
        self.limits = limits
        self.memory_mib = limits.memory_mib

    def import_library(self) -> None:
        import av  # noqa: F401
        import decord

        # FFmpeg also warns about files that decode well; real failures are raised as errors.
        decord.logging.set_level(decord.logging.QUIET)

    @contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[OpenVideo]:
        self.import_library()
        import decord

        path = check_file(path)
        info, index = inspect_file(path, self.limits)
        # decord's own FFmpeg detects the format again and follows playlists, so it gets only files
        # whose first bytes identify the format. It accepts only names in UTF-8.
        if index.is_indexed and _is_utf8(path):
            try:
                reader = decord.VideoReader(media_url(path), num_threads=self.num_threads)
            except (RuntimeError, decord.DECORDError, AssertionError) as error:
                raise VideoError(path, f"cannot be opened by decord ({_reason(error)})") from error
            if _is_safe(reader, index):
                with closing(self._by_pyav(path, info, index)) as checker:
                    yield _DecordVideo(path, reader, info, checker)
                return
        with closing(self._by_pyav(path, info, index)) as video:
            yield video

    def _by_pyav(self, path: Path, info: VideoInfo, index: FileIndex) -> PyAVVideo:
        return PyAVVideo(path, info, index, num_threads=self.num_threads, limits=self.limits)


class _DecordVideo:
    def __init__(self, path: Path, reader: Any, info: VideoInfo, checker: PyAVVideo) -> None:
        self._path, self._reader, self.info = path, reader, info
        self._checker = checker

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        import decord

        self._checker.check(indices)
        for chunk in chunks(indices, self.info):
            try:
                frames = self._reader.get_batch(list(chunk)).asnumpy()
            except (RuntimeError, decord.DECORDError) as error:
                raise VideoError(
                    self._path,
                    f"cannot be decoded at frames {chunk[0]} to {chunk[-1]} ({_reason(error)})",
                ) from error
            expected = (len(chunk), self.info.height, self.info.width, 3)
            if frames.shape != expected:
                raise VideoError(
                    self._path,
                    f"has frames of shape {frames.shape} from {chunk[0]} on, expected {expected}",
                )
            yield frames


def _is_safe(reader: Any, index: FileIndex) -> bool:
    """Returns whether decord finds the same frames in a file as PyAV did."""
    import decord

    if reader.get_key_indices() != index.key_indices or len(reader) != len(index.pts):
        return False
    try:
        first_frame = reader.get_batch([0]).asnumpy()[0]
    except (RuntimeError, decord.DECORDError):
        return False
    return np.array_equal(first_frame, index.first_frame)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _reason(error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    # Remove the time of day and decord's source line, so that equal errors have equal messages.
    return re.sub(r"\[\d+:\d+:\d+\] \S+:\d+: ", "", first_line)[:200] or type(error).__name__
