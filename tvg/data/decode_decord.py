"""decord backend (the maintained wheel is called decord2; the module is `decord`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tvg.data.decode import Frames, VideoDecoder, VideoError, VideoInfo, check_file, chunks
from tvg.data.decode_pyav import open_container, scan_packets


class DecordDecoder(VideoDecoder):
    """Decodes with decord.

    decord gives the first part of a truncated file without a word, so PyAV reads the packets first
    (without decoding them) to see that the file is whole.

    Args:
        num_threads: decoding threads; 0 lets decord choose.
    """

    def __init__(self, *, num_threads: int) -> None:
        self.num_threads = num_threads

    def import_library(self) -> None:
        import decord

        # FFmpeg's remarks on files that decode well; real failures come back as errors.
        decord.logging.set_level(decord.logging.QUIET)

    @contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[_DecordVideo]:
        self.import_library()
        import decord

        path = check_file(path)
        with open_container(path) as (container, stream):
            scan_packets(path, container, stream)
        try:
            reader = decord.VideoReader(str(path), num_threads=self.num_threads)
            height, width, _ = reader[0].shape
        except (RuntimeError, decord.DECORDError, StopIteration, AssertionError) as error:
            raise VideoError(path, f"cannot be opened by decord ({_reason(error)})") from error
        info = VideoInfo(
            num_frames=len(reader), fps=float(reader.get_avg_fps()), height=height, width=width
        )
        if not info.fps > 0:
            raise VideoError(path, f"states no frame rate: got {info.fps}")
        yield _DecordVideo(path, reader, info)


class _DecordVideo:
    def __init__(self, path: Path, reader: Any, info: VideoInfo) -> None:
        self._path, self._reader, self.info = path, reader, info

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        import decord

        for chunk in chunks(indices, self.info):
            try:
                frames = self._reader.get_batch(list(chunk)).asnumpy()
            except (RuntimeError, decord.DECORDError) as error:
                raise VideoError(
                    self._path,
                    f"cannot be decoded at frames {chunk[0]} to {chunk[-1]} ({_reason(error)})",
                ) from error
            if frames.shape[0] != len(chunk):
                raise VideoError(
                    self._path, f"gave {frames.shape[0]} of {len(chunk)} frames from {chunk[0]}"
                )
            yield frames


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
