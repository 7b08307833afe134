"""The one place that opens media files: a local file, within limits, that names no other file.

FFmpeg takes a name with a colon for a URL and follows playlists (`ffconcat`, HLS, DASH) and image
patterns (`%03d.png`) to other files, whatever the file's own name is. Here every name means a file,
and only formats that hold their own data are opened. This module must stay free of torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from tvg.data.decode import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# FFmpeg's demuxers that read nothing but the opened file, by short name.
FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif")


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """The largest file that is decoded; checked against the file's claims, then while it is read.

    Attributes:
        max_frame_pixels: width x height of a frame.
        max_frames: frames of the video stream.
        max_duration_s: length in seconds.
        memory_mib: memory that the decoding process may take beyond what it has at its start; None:
            no limit. Kept by the system, so it needs that process: see `tvg.data.time_limit`.
    """

    max_frame_pixels: int
    max_frames: int
    max_duration_s: float
    memory_mib: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a limit that refuses every file or that FFmpeg cannot keep."""
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
        """Raises VideoError for too many frames."""
        if num_frames > self.max_frames:
            raise VideoError(
                path,
                f"holds {num_frames} frames or more; expected at most {self.max_frames} "
                f"(data.decoder.limits.max_frames)",
            )

    def check_duration(self, path: Path, duration_s: float) -> None:
        """Raises VideoError for too long a file."""
        if duration_s > self.max_duration_s:
            raise VideoError(
                path,
                f"lasts {duration_s:.0f} s; expected at most {self.max_duration_s:g} s "
                f"(data.decoder.limits.max_duration_s)",
            )


NO_LIMITS = MediaLimits(max_frame_pixels=2**31 - 1, max_frames=sys.maxsize, max_duration_s=inf)


def media_url(path: Path) -> str:
    """Returns the name by which FFmpeg opens this file and never anything else."""
    return f"file:{path}"


@contextmanager
def open_media(
    path: Path, limits: MediaLimits = NO_LIMITS
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file for PyAV with its main video stream, which is not decoded yet.

    Raises:
        VideoError: no readable video in a format of `FORMATS`, or its claims exceed `limits`. (Also
            for what FFmpeg raises here; failures of decoding are the caller's.)
    """
    import av

    options = {
        "format_whitelist": ",".join(FORMATS),
        "protocol_whitelist": "file",
        "enable_drefs": "0",  # a QuickTime file may hold its data in others
        "max_pixels": str(limits.max_frame_pixels),  # frames decoded to find out about a stream
    }
    try:
        # Titles in another encoding are no reason to refuse a video.
        container = av.open(media_url(path), options=options, metadata_errors="replace")
    except av.ArgumentError as error:
        raise VideoError(
            path,
            f"is in no format that is read ({', '.join(FORMATS)}), or its header is damaged; "
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
        # A stream may hold larger frames than its container claims.
        codec.options = {**codec.options, "max_pixels": str(limits.max_frame_pixels)}
        yield container, stream  # type: ignore[misc]


def reason(error: Exception) -> str:
    """Returns FFmpeg's own words, without the number and the file name around them."""
    return getattr(error, "strerror", None) or str(error)
