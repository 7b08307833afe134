"""Opens media files: only local files within limits that do not refer to other files.

FFmpeg treats a name with a colon as a URL. It also follows playlists (`ffconcat`, HLS, DASH) and
image patterns (`%03d.png`) to other files, whatever the name of the opened file is. This module
treats every name as a file name, and opens only formats that contain all of their data. No other
module reads media files with PyAV.

This module must not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from tvg.data.video.decode import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# FFmpeg's demuxers that read nothing but the opened file, by short name.
FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif")


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Limits on decoded files, checked against the file's header and again while it is read.

    Attributes:
        max_frame_pixels: width x height of a frame.
        max_frames: frames of the video stream.
        max_duration_s: duration in seconds.
        memory_mib: memory in MiB that the decoding process may use beyond its initial memory; None:
            no limit. The operating system enforces it in a separate process; see
            `tvg.data.video.time_limit`.
    """

    max_frame_pixels: int
    max_frames: int
    max_duration_s: float
    memory_mib: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a limit that refuses every file or that FFmpeg cannot enforce."""
        if not 0 < self.max_frame_pixels < 2**31:
            raise ValueError(
                f"max_frame_pixels must be in 1 to {2**31 - 1}: got {self.max_frame_pixels}"
            )
        for name in ("max_frames", "max_duration_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive: got {getattr(self, name)}")
        if self.memory_mib is not None and not self.memory_mib > 0:
            raise ValueError(f"memory_mib must be positive: got {self.memory_mib}")

    def check_size(self, path: Path, width: int, height: int) -> None:
        """Raises VideoError for a frame that is too large."""
        if width * height > self.max_frame_pixels:
            raise VideoError(
                path,
                f"has frames of {width}x{height} = {width * height} pixels; expected at most "
                f"{self.max_frame_pixels} (data.decoder.limits.max_frame_pixels)",
            )

    def check_frames(self, path: Path, num_frames: int) -> None:
        """Raises VideoError if there are too many frames."""
        if num_frames > self.max_frames:
            raise VideoError(
                path,
                f"holds {num_frames} frames or more; expected at most {self.max_frames} "
                f"(data.decoder.limits.max_frames)",
            )

    def check_duration(self, path: Path, duration_s: float) -> None:
        """Raises VideoError if the file is too long."""
        if duration_s > self.max_duration_s:
            raise VideoError(
                path,
                f"lasts {duration_s:.0f} s; expected at most {self.max_duration_s:g} s "
                f"(data.decoder.limits.max_duration_s)",
            )


NO_LIMITS = MediaLimits(max_frame_pixels=2**31 - 1, max_frames=sys.maxsize, max_duration_s=inf)


def media_url(path: Path) -> str:
    """Returns a name that FFmpeg always treats as exactly this file."""
    return f"file:{path}"


@contextmanager
def open_media(
    path: Path, limits: MediaLimits = NO_LIMITS
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file with PyAV and yields it with its main video stream, without decoding.

    Raises:
        VideoError: the file is not a readable video in a format of `FORMATS`, or its header exceeds
            `limits`. Errors of FFmpeg on opening become VideoError too; the caller handles errors
            of decoding.
    """
    import av

    options = {
        "format_whitelist": ",".join(FORMATS),
        "protocol_whitelist": "file",
        "enable_drefs": "0",  # a QuickTime file may refer to data in other files
        "max_pixels": str(limits.max_frame_pixels),  # for frames decoded while probing a stream
    }
    try:
        # Metadata in another encoding must not make a video unreadable.
        container = av.open(media_url(path), options=options, metadata_errors="replace")
    except av.ArgumentError as error:
        raise VideoError(
            path,
            f"has a damaged header or an unsupported format (supported: {', '.join(FORMATS)}); "
            f"expected a video file (playlists and image sequences are not followed)",
        ) from error
    except (av.FFmpegError, UnicodeError) as error:
        raise VideoError(
            path, f"is not a readable video ({reason(error)}); expected a complete video file"
        ) from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise VideoError(path, "has no video stream; expected a video file")
        codec = stream.codec_context
        if codec is None:
            raise VideoError(path, "has a video stream of a codec that FFmpeg cannot decode")
        limits.check_size(path, codec.width, codec.height)  # type: ignore[attr-defined]
        limits.check_frames(path, stream.frames)
        limits.check_duration(path, (container.duration or 0) / av.time_base)
        # A stream may contain larger frames than its container states.
        codec.options = {**codec.options, "max_pixels": str(limits.max_frame_pixels)}
        yield container, stream  # type: ignore[misc]


def reason(error: Exception) -> str:
    """Returns FFmpeg's error text without the error number and file name."""
    return getattr(error, "strerror", None) or str(error)
