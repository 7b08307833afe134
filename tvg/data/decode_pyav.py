"""PyAV backend, and the reading of packets that tells a whole file from a truncated one."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvg.data.decode import Frames, VideoDecoder, VideoError, VideoInfo, check_file, chunks

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Containers that state their length; elsewhere it is a guess from the bit rate.
STATES_LENGTH = {"mov", "mp4", "matroska", "webm"}
MIN_SKIP_FRAMES = 8  # a seek empties the decoder's pipeline: not worth it for a shorter way


@dataclass(frozen=True, kw_only=True)
class PacketIndex:
    """The video packets of a file, read without decoding.

    Attributes:
        pts: presentation times in stream units, ascending: frame i is shown at pts[i]. Empty where
            the container does not give each frame a time of its own (AVI).
        key_pts: those of key frames, ascending.
        num_frames: packets that show a frame.
    """

    pts: list[int]
    key_pts: list[int]
    num_frames: int


@contextmanager
def open_container(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file for PyAV with its main video stream; every failure is a VideoError."""
    import av

    try:
        container = av.open(str(path))
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise VideoError(
            path, f"is not a readable video ({_reason(error)}); expected a complete video file"
        ) from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise VideoError(path, "has no video stream; expected a video file")
        assert stream.type == "video"
        if not stream.codec_context:
            raise VideoError(path, "has a video stream of an unknown codec")
        yield container, stream  # type: ignore[misc]


def scan_packets(path: Path, container: InputContainer, stream: VideoStream) -> PacketIndex:
    """Reads every packet of the file once.

    Raises:
        VideoError: no frame at all, or the packets end before the length that the file states.
    """
    import av

    pts: list[int | None] = []
    key_pts: list[int] = []
    end_s = 0.0
    is_cut = False
    try:
        for packet in container.demux():
            if packet.size == 0:
                continue  # the flush packet at the end of each stream
            is_cut |= packet.is_corrupt  # the last one of a file cut within it
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                length = packet.duration or 0
                end_s = max(end_s, float((time + length) * packet.time_base))
            if packet.stream_index == stream.index and not packet.is_discard:
                pts.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    key_pts.append(packet.pts)
    except av.FFmpegError as error:
        raise VideoError(
            path, f"is damaged ({_reason(error)}); expected a complete video file"
        ) from error
    if not pts:
        raise VideoError(path, "has a video stream without a single frame")
    _check_complete(path, container, stream, end_s=end_s, is_cut=is_cut, num_packets=len(pts))
    known = [time for time in pts if time is not None]
    has_own_times = len(set(known)) == len(pts)
    return PacketIndex(
        pts=sorted(known) if has_own_times else [], key_pts=sorted(key_pts), num_frames=len(pts)
    )


def _check_complete(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    *,
    end_s: float,
    is_cut: bool,
    num_packets: int,
) -> None:
    """Raises VideoError for a truncated file: decoders read its first part without a word."""
    import av

    if not STATES_LENGTH.intersection(container.format.name.split(",")):
        return
    stated_s = float((container.duration or 0) / av.time_base)
    start_s = float((container.start_time or 0) / av.time_base)
    missing_s = stated_s - (end_s - start_s)
    if stream.frames > 0:  # MP4 lists every sample, so less slack is needed
        is_short = num_packets < stream.frames and missing_s > 0.25
    else:
        is_short = missing_s > max(1.0, 0.02 * stated_s)
    if is_cut or is_short:
        raise VideoError(
            path,
            f"is truncated: its data end after {max(0.0, end_s - start_s):.2f} s of "
            f"{stated_s:.2f} s; expected a complete video file",
        )


class PyAVDecoder(VideoDecoder):
    """Decodes with PyAV: on from the last frame, or from a key frame where that is much nearer.

    Args:
        num_threads: decoding threads; 0 lets FFmpeg choose.
    """

    def __init__(self, *, num_threads: int) -> None:
        self.num_threads = num_threads

    def import_library(self) -> None:
        import av  # noqa: F401

    @contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[_PyAVVideo]:
        path = check_file(path)
        with open_container(path) as (container, stream):
            index = scan_packets(path, container, stream)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = self.num_threads
            yield _PyAVVideo(path, container, stream, index)


class _PyAVVideo:
    def __init__(
        self, path: Path, container: InputContainer, stream: VideoStream, index: PacketIndex
    ) -> None:
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(path, "states no frame rate")
        self._path, self._container, self._stream, self._index = path, container, stream, index
        self.info = VideoInfo(
            num_frames=index.num_frames,
            fps=float(rate),
            height=stream.codec_context.height,
            width=stream.codec_context.width,
        )

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        source = self._by_time(indices) if self._index.pts else self._by_count(indices)
        for chunk in chunks(indices, self.info):
            yield np.stack([self._next(source, index) for index in chunk])

    def _next(self, source: Iterator[Frames], index: int) -> Frames:
        import av

        try:
            frame = next(source, None)
        except av.FFmpegError as error:
            raise VideoError(
                self._path, f"cannot be decoded up to frame {index} ({_reason(error)})"
            ) from error
        if frame is None:
            raise VideoError(
                self._path,
                f"ends before frame {index}; its packets promise {self.info.num_frames} frames",
            )
        if frame.shape != (self.info.height, self.info.width, 3):
            raise VideoError(
                self._path,
                f"changes its frame size at frame {index}: {frame.shape[1]}x{frame.shape[0]} "
                f"after {self.info.width}x{self.info.height}",
            )
        return frame

    def _by_count(self, indices: Sequence[int]) -> Iterator[Frames]:
        """Decodes from the start and counts."""
        wanted = iter(indices)
        index = next(wanted, None)
        for position, frame in enumerate(self._decode_from(None)):
            if index != position:
                continue
            pixels = _rgb(frame)
            while index == position:
                yield pixels
                index = next(wanted, None)
            if index is None:
                return

    def _by_time(self, indices: Sequence[int]) -> Iterator[Frames]:
        """Decodes each wanted frame by its presentation time."""
        decoded: Iterator[VideoFrame] = iter(())
        position = -1  # index of the frame decoded last
        pixels: Frames | None = None
        for index in indices:
            if index != position or pixels is None:
                key = self._key_before(index)
                if position < 0 or key - position >= MIN_SKIP_FRAMES:
                    decoded = self._decode_from(key)
                frame = self._advance(decoded, index)
                if frame is None:  # the seek landed behind it: some demuxers seek by decoding time
                    decoded = self._decode_from(None)
                    frame = self._advance(decoded, index)
                if frame is None:
                    return
                position, pixels = index, _rgb(frame)
            yield pixels

    def _key_before(self, index: int) -> int:
        """Returns the index of the last key frame at or before `index`."""
        keys = self._index.key_pts
        place = bisect.bisect_right(keys, self._index.pts[index]) - 1
        return bisect.bisect_left(self._index.pts, keys[place]) if place >= 0 else 0

    def _advance(self, decoded: Iterator[VideoFrame], index: int) -> VideoFrame | None:
        """Decodes on to frame `index`; None when it is not met."""
        wanted = self._index.pts[index]
        for frame in decoded:
            if frame.pts is not None and frame.pts >= wanted:
                return frame if frame.pts == wanted else None
        return None

    def _decode_from(self, index: int | None) -> Iterator[VideoFrame]:
        start = self._index.pts[index] if index is not None else (self._stream.start_time or 0)
        self._container.seek(start, stream=self._stream)
        yield from self._container.decode(self._stream)


def _rgb(frame: VideoFrame) -> Frames:
    pixels = frame.to_ndarray(format="rgb24")
    assert pixels.dtype == np.uint8
    return pixels  # type: ignore[return-value]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
