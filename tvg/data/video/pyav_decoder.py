"""Decodes with PyAV; finds exact frames by presentation time, even if seeks are inexact."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvg.data.video.decode import Frames, VideoDecoder, VideoError, VideoInfo, check_file, chunks
from tvg.data.video.media import NO_LIMITS, MediaLimits, open_media, reason
from tvg.data.video.packets import FileIndex, inspect_file, to_rgb

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

MIN_SKIP_FRAMES = 8  # a seek empties the decoder's pipeline; shorter distances are decoded
# Codecs in which frames that are marked as non-reference can be skipped. (In HEVC, a frame of a
# higher temporal layer may need them.)
SKIPPING_CODECS = {"h264"}


class PyAVDecoder(VideoDecoder):
    """Decodes with PyAV, starting at the last decoded frame or at a much nearer key frame.

    Args:
        num_threads: decoding threads; 0 lets FFmpeg choose.
        limits: files that exceed them are refused.
    """

    def __init__(self, *, num_threads: int, limits: MediaLimits = NO_LIMITS) -> None:
        self.num_threads = num_threads
        self.limits = limits
        self.memory_mib = limits.memory_mib

    def import_library(self) -> None:
        import av  # noqa: F401

    @contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[PyAVVideo]:
        path = check_file(path)
        info, index = inspect_file(path, self.limits)
        video = PyAVVideo(path, info, index, num_threads=self.num_threads, limits=self.limits)
        try:
            yield video
        finally:
            video.close()


class PyAVVideo:
    """One file, opened for decoding when frames are requested."""

    def __init__(
        self,
        path: Path,
        info: VideoInfo,
        index: FileIndex,
        *,
        num_threads: int,
        limits: MediaLimits,
    ) -> None:
        from av.video.reformatter import VideoReformatter

        self.info = info
        self._path, self._index, self._num_threads = path, index, num_threads
        self._limits = limits
        self._reformatter = VideoReformatter()
        self._opened = ExitStack()
        self._decoded: Iterator[VideoFrame] = iter(())
        self._wanted: frozenset[int] | None = None  # times of the requested frames; None: all
        self._sought_pts: int | None = None  # of the last seek; None: decoded from the start

    def close(self) -> None:
        self._opened.close()

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        source = self._source(indices)
        shown: VideoFrame | None = None
        pixels: Frames | None = None
        for chunk in chunks(indices, self.info):
            parts = []
            for index in chunk:
                frame = self._next(source, index)
                if frame is not shown or pixels is None:  # repeated frames are converted once
                    shown, pixels = frame, self._to_pixels(frame, index)
                parts.append(pixels)
            yield np.stack(parts)

    def check(self, indices: Sequence[int]) -> None:
        """Decodes and discards the frames of `indices`; raises VideoError if they are damaged."""
        source = self._source(indices)
        for index in indices:
            self._next(source, index)

    def _source(self, indices: Sequence[int]) -> Iterator[VideoFrame]:
        pts = self._index.pts
        self._wanted = frozenset(pts[index] for index in indices) if pts else None
        self._restart()
        return self._by_time(indices) if pts else self._by_count(indices)

    def _next(self, source: Iterator[VideoFrame], index: int) -> VideoFrame:
        import av

        try:
            frame = next(source, None)
        except av.FFmpegError as error:
            raise VideoError(
                self._path, f"cannot be decoded up to frame {index} ({reason(error)})"
            ) from error
        if frame is None:
            raise VideoError(
                self._path,
                f"frame {index} cannot be decoded, of {self.info.num_frames} that its packets "
                f"promise",
            )
        return frame

    def _to_pixels(self, frame: VideoFrame, index: int) -> Frames:
        pixels = to_rgb(frame, self._reformatter)
        if pixels.shape != (self.info.height, self.info.width, 3):
            raise VideoError(
                self._path,
                f"changes its frame size at frame {index}: {pixels.shape[1]}x{pixels.shape[0]} "
                f"after {self.info.width}x{self.info.height}",
            )
        return pixels

    def _by_count(self, indices: Sequence[int]) -> Iterator[VideoFrame]:
        """Yields the wanted frames by decoding from the start and counting."""
        wanted = iter(indices)
        index = next(wanted, None)
        for position, frame in enumerate(self._decoded):
            self._check_whole(frame)
            while index == position:
                yield frame
                index = next(wanted, None)
            if index is None:
                return

    def _by_time(self, indices: Sequence[int]) -> Iterator[VideoFrame]:
        """Yields the wanted frames by their presentation times."""
        position = -1  # of the last decoded frame
        frame: VideoFrame | None = None
        for index in indices:
            if index != position or frame is None:
                key = self._key_before(index)
                if key - position >= MIN_SKIP_FRAMES:
                    self._seek(key)
                frame = self._advance_to(index)
                if frame is None:  # the seek landed too late, as in some containers
                    self._wanted = None
                    self._restart()
                    frame = self._advance_to(index)
                if frame is None:
                    return
                position = index
            yield frame

    def _key_before(self, index: int) -> int:
        """Returns the last key frame at or before `index`."""
        keys = self._index.key_indices
        place = bisect.bisect_right(keys, index) - 1
        return keys[place] if place >= 0 else 0

    def _advance_to(self, index: int) -> VideoFrame | None:
        """Decodes up to a frame; returns None if it is not found, or is corrupt after a seek."""
        wanted = self._index.pts[index]
        for frame in self._decoded:
            if frame.is_corrupt:
                if self._sought_pts is None:
                    self._check_whole(frame)
                elif frame.pts is None or frame.pts >= self._sought_pts:
                    return None
                # Frames before the key frame may lack their references; they are not shown.
            if frame.pts is not None and frame.pts >= wanted:
                return frame if frame.pts == wanted else None
        return None

    def _check_whole(self, frame: VideoFrame) -> None:
        """Raises VideoError for a corrupt frame, because later frames depend on it."""
        if frame.is_corrupt:
            place = "" if frame.time is None else f" at {frame.time:.2f} s"
            raise VideoError(
                self._path,
                f"is damaged: the frame{place} cannot be decoded without errors; expected a "
                f"complete video file",
            )

    def _seek(self, index: int) -> None:
        self._sought_pts = self._index.pts[index]
        self._container.seek(self._sought_pts, stream=self._stream)
        self._decoded = self._decode()

    def _decode(self) -> Iterator[VideoFrame]:
        """Decodes further frames, skipping those that are neither wanted nor references."""
        codec = self._stream.codec_context
        may_skip = self._wanted is not None and codec.name in SKIPPING_CODECS
        for packet in self._container.demux(self._stream):
            if may_skip and self._wanted is not None and packet.pts is not None:
                codec.skip_frame = "DEFAULT" if packet.pts in self._wanted else "NONREF"
            yield from packet.decode()

    def _restart(self) -> None:
        """Reopens the file, because not every container can seek to its start."""
        self._opened.close()
        self._container, self._stream = self._opened.enter_context(
            open_media(self._path, self._limits)
        )
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = self._num_threads
        self._sought_pts = None
        self._decoded = self._decode()
