"""Reads the packets of a file with PyAV and decodes only the first frame.

The packets show whether the file is truncated, and when each frame is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tvg.data.video.decode import Frames, VideoError, VideoInfo
from tvg.data.video.media import NO_LIMITS, MediaLimits, open_media, reason
from tvg.data.video.timeline import VariableRate, variable_rate

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

# Containers with an index: their duration is not estimated from the bit rate; seeks are exact.
INDEXED_FORMATS = {"mov", "mp4", "matroska", "webm"}


@dataclass(frozen=True, kw_only=True)
class FileIndex:
    """The frames of a file that are shown (not hidden by an edit list).

    Attributes:
        pts: presentation times in stream units, ascending: frame i is shown at pts[i]. Empty if the
            container does not store them (AVI stores only decoding times).
        key_indices: the frames at which decoding can begin, ascending.
        is_indexed: the container has its own index, so seeks are exact.
        first_frame: uint8 [H, W, 3], as shown.
    """

    pts: list[int]
    key_indices: list[int]
    is_indexed: bool
    first_frame: Frames


class _Shown(NamedTuple):
    """The packet of a shown frame, with times in stream units."""

    pts: int | None
    dts: int | None
    is_key: bool
    duration: int | None


@dataclass(kw_only=True)
class _Packets:
    """The result of reading all packets."""

    num_packets: int = 0  # of the video stream
    shown: list[_Shown]  # in decoding order
    end_s: float = 0.0  # of the last packet of any stream
    is_cut: bool = False  # a packet is incomplete


def inspect_file(path: Path, limits: MediaLimits = NO_LIMITS) -> tuple[VideoInfo, FileIndex]:
    """Reads all packets of a file and decodes its first frame; recent results are cached.

    Frames hidden by an edit list (the usual result of cutting without re-encoding) do not count.

    Raises:
        VideoError: the file has no frame or no frame rate, exceeds `limits`, or its packets end
            before its stated duration.
    """
    state = path.stat()
    return _inspect(path, (state.st_ino, state.st_size, state.st_mtime_ns), limits)


@lru_cache(maxsize=4)  # several windows of one file are often requested in a row
def _inspect(
    path: Path, state: tuple[int, int, int], limits: MediaLimits
) -> tuple[VideoInfo, FileIndex]:
    with open_media(path, limits) as (container, stream):
        packets = _read_packets(path, container, stream, limits)
        if not packets.shown:
            raise VideoError(path, "has a video stream without a single frame")
        _check_complete(path, container, stream, packets)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        time_base = float(stream.time_base or 0)
        format_name = container.format.name
        is_indexed = _is_indexed(container)
        pts, key_indices = _times(
            packets,
            may_reorder=bool(stream.codec_context.has_b_frames),
            is_avi=format_name == "avi",
        )
    first_frame, delay = _first_frame(path, limits)
    variable = _variable_rate(
        pts if pts and format_name != "avi" else _times_by_dts(packets, delay),
        last_frame_s=_last_duration(packets, format_name) * time_base or None,
        time_base=time_base,
        stated_fps=fps,
    )
    if variable is None and not fps > 0:
        raise VideoError(path, "states no frame rate")
    height, width, _ = first_frame.shape
    info = VideoInfo(
        num_frames=len(packets.shown),
        fps=fps if variable is None else len(packets.shown) / variable.duration_s,
        height=height,
        width=width,
        variable=variable,
    )
    limits.check_duration(path, info.duration_s)
    index = FileIndex(
        pts=pts, key_indices=key_indices, is_indexed=is_indexed, first_frame=first_frame
    )
    return info, index


def to_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> Frames:
    """Returns a frame in display orientation: uint8 [H, W, 3].

    Args:
        frame: the decoded frame.
        reformatter: shared by a file's frames: creating one takes ten times as long as using it.
    """
    # One thread: starting more takes longer than converting a frame.
    pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    assert pixels.dtype == np.uint8
    # Phones record in one orientation and state a rotation: anticlockwise, multiples of 90 degrees.
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


def _read_packets(
    path: Path, container: InputContainer, stream: VideoStream, limits: MediaLimits
) -> _Packets:
    import av

    packets = _Packets(shown=[])
    ends: dict[int, int] = {}  # per stream, in ticks, because a Fraction per packet is slow
    tick_s: dict[int, float] = {}
    is_vp8 = stream.codec_context.name in ("vp8", "libvpx")
    try:
        for packet in container.demux():
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                end = time + (packet.duration or 0)
                number = packet.stream_index
                if number not in ends:
                    ends[number], tick_s[number] = end, float(packet.time_base)
                ends[number] = max(ends[number], end)
            if packet.size == 0:
                continue  # flush packet at the end of a stream, or an omitted AVI frame
            packets.is_cut |= packet.is_corrupt  # the last packet of a file that was cut inside it
            if packet.stream_index == stream.index:
                packets.num_packets += 1
                limits.check_frames(path, packets.num_packets)
                if not packet.is_discard and not (is_vp8 and _is_hidden_vp8(packet)):
                    packets.shown.append(
                        _Shown(packet.pts, packet.dts, packet.is_keyframe, packet.duration)
                    )
    except av.FFmpegError as error:
        raise VideoError(
            path, f"is damaged ({reason(error)}); expected a complete video file"
        ) from error
    packets.end_s = max([0.0, *(end * tick_s[number] for number, end in ends.items())])
    return packets


def _is_hidden_vp8(packet: Packet) -> bool:
    """Returns whether a VP8 packet is a hidden reference frame (RFC 6386, 9.1: show_frame)."""
    return not memoryview(packet)[0] >> 4 & 1


def _check_complete(
    path: Path, container: InputContainer, stream: VideoStream, packets: _Packets
) -> None:
    """Raises VideoError for a truncated file, whose first part decoders read without an error."""
    import av

    is_avi = container.format.name == "avi"
    if not (is_avi or _is_indexed(container)):
        return
    stated_s = (container.duration or 0) / av.time_base
    found_s = max(0.0, packets.end_s - (container.start_time or 0) / av.time_base)
    if is_avi and stream.frames > 0 and stream.average_rate:
        # FFmpeg shortens a cut AVI's duration to what is left, but keeps the frame count.
        stated_s = float(stream.frames / stream.average_rate)
    if stream.frames > 0:  # MP4 and AVI state the number of frames: less slack
        is_short = packets.num_packets < stream.frames and stated_s - found_s > 0.25
    else:
        is_short = stated_s - found_s > max(1.0, 0.02 * stated_s)
    if packets.is_cut or is_short:
        raise VideoError(
            path,
            f"is truncated: its data end after {found_s:.2f} s of {stated_s:.2f} s; "
            f"expected a complete video file",
        )


def _is_indexed(container: InputContainer) -> bool:
    return bool(INDEXED_FORMATS.intersection(container.format.name.split(",")))


def _times(packets: _Packets, *, may_reorder: bool, is_avi: bool) -> tuple[list[int], list[int]]:
    """Returns `FileIndex.pts` and `key_indices`."""
    shown = packets.shown
    known = [packet.pts for packet in shown if packet.pts is not None]
    # AVI stores only decoding times. FFmpeg's guessed pts are wrong if frames are reordered.
    shifts = {None if p.pts is None or p.dts is None else p.pts - p.dts for p in shown}
    is_fake = may_reorder and (is_avi or len(shifts) == 1) and len(shown) > 1
    if is_fake or len(set(known)) < len(shown):
        return [], []
    ordered = sorted(known)
    place = {pts: index for index, pts in enumerate(ordered)}
    return ordered, sorted(place[p.pts] for p in shown if p.is_key and p.pts is not None)


def _times_by_dts(packets: _Packets, delay: int) -> list[int]:
    """Returns presentation times derived from decoding times; empty if those are unknown.

    A decoder outputs its first frame after `delay` further packets, and then one frame per packet.
    A frame's time is the decoding time of the latest packet. After the last packet, the last
    interval repeats.
    """
    known = [packet.dts if packet.dts is not None else packet.pts for packet in packets.shown]
    ticks = sorted(tick for tick in known if tick is not None)
    if len(ticks) < len(known) or len(ticks) < 2:
        return []
    step = ticks[-1] - ticks[-2]
    return ticks[delay:] + [ticks[-1] + step * (i + 1) for i in range(min(delay, len(ticks)))]


def _last_duration(packets: _Packets, format_name: str) -> int:
    """Returns the duration of the last frame in stream units; 0 if unknown."""
    if format_name == "avi":  # always one tick, whatever its length
        return 0
    # MP4 states decoding intervals; the last one belongs to the last frame.
    is_mp4 = "mp4" in format_name
    last = packets.shown[-1] if is_mp4 else max(packets.shown, key=lambda p: p.pts or 0)
    return last.duration or 0


def _variable_rate(
    ticks: list[int], *, last_frame_s: float | None, time_base: float, stated_fps: float
) -> VariableRate | None:
    """Returns the times of a file's frames; None if the rate is constant or no times are known."""
    if not ticks:
        return None
    return variable_rate(
        [tick * time_base for tick in ticks], last_frame_s=last_frame_s, stated_fps=stated_fps
    )


def _first_frame(path: Path, limits: MediaLimits) -> tuple[Frames, int]:
    """Decodes the first frame, which is the only way to find the size after rotation.

    Also returns how many packets the decoder read before the packet that produced the frame.
    """
    import av
    from av.video.reformatter import VideoReformatter

    with open_media(path, limits) as (container, stream):
        stream.codec_context.thread_count = 1  # starting more takes too long
        try:
            for delay, packet in enumerate(container.demux(stream)):
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise VideoError(path, "is damaged: its first frame has errors")
                    return to_rgb(frame, VideoReformatter()), delay
        except av.FFmpegError as error:
            raise VideoError(path, f"cannot be decoded ({reason(error)})") from error
    raise VideoError(path, "cannot be decoded: no frame was found in its packets")
