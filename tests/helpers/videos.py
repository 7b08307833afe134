"""Videos for the tests of decoding and clip loading."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

FIXED = 65536  # the number 1.0 as 16.16 fixed point, for MP4's display matrix
ONE = 1 << 30  # the number 1.0 as 2.30 fixed point, for the last entry of this matrix


@pytest.fixture(scope="session")
def videos(
    tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]
) -> dict[str, Path]:
    """Writes valid videos and returns their paths by name; all except "plain" are unusual."""
    folder = tmp_path_factory.mktemp("videos")
    plain = write_video(folder / "plain.mp4", num_frames=60, codec_options={"g": "15", "bf": "0"})
    bframes = {"preset": "fast", "g": "24", "bf": "3"}
    found = {
        "plain": plain,
        "bframes": write_video(folder / "b.mp4", num_frames=90, codec_options=bframes),
        "cuts": write_video(  # key frames at irregular intervals
            folder / "cuts.mp4",
            num_frames=90,
            fps=Fraction(30000, 1001),
            codec_options={
                "preset": "fast",
                "bf": "2",
                "forced-idr": "1",
                "x264-params": "keyint=60:min-keyint=1:scenecut=100",
            },
        ),
        "varying_rate": write_video(
            folder / "vfr.mp4",
            num_frames=70,
            codec_options=bframes,
            frame_times_ms=np.random.default_rng(1).integers(10, 120, 70).cumsum().tolist(),
        ),
        "open_gop": write_video(
            folder / "open.mp4",
            num_frames=100,
            width=128,
            height=128,
            codec_options={"preset": "medium", "x264-params": "open-gop=1:keyint=20:bframes=3"},
        ),
        "matroska": write_video(folder / "m.mkv", num_frames=60, codec_options=bframes),
        "avi": write_video(folder / "a.avi", num_frames=60, codec_options=bframes),
        "transport": write_video(folder / "t.ts", num_frames=60, codec_options=bframes),
        "late_start": _shift(plain, folder / "late.mp4", frames=-50),
        "edit_list": _shift(
            write_video(folder / "whole.mp4", num_frames=60, codec_options=bframes),
            folder / "edit.mp4",
            frames=10,
        ),
    }
    found["narrow"] = write_video(folder / "n.mp4", num_frames=60, width=96, height=128)
    for angle, matrix in {
        90: (0, FIXED, -FIXED, 0, 48, 0),
        180: (-FIXED, 0, 0, -FIXED, 64, 48),
        270: (0, -FIXED, FIXED, 0, 0, 64),
    }.items():
        found[f"rotated_{angle}"] = _rotate(plain, folder / f"r{angle}.mp4", matrix)
    return found


@pytest.fixture(scope="session")
def bad_files(
    tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]
) -> dict[str, tuple[Path, str]]:
    """Writes unusable files; returns each path with the text that its error must contain."""
    folder = tmp_path_factory.mktemp("bad")
    start_first = write_video(
        folder / "faststart.mp4", num_frames=100, container_options={"movflags": "+faststart"}
    )
    matroska = write_video(folder / "whole.mkv", num_frames=100)
    index_last = write_video(folder / "index_last.mp4", num_frames=100)
    avi = write_video(folder / "whole.avi", num_frames=100)
    text = folder / "text.mp4"
    text.write_text("not a video at all\n" * 40)
    empty = folder / "empty.mp4"
    empty.touch()
    return {
        "missing": (folder / "missing.mp4", "no such file"),
        "directory": (folder, "is a directory"),
        "text": (text, "not a readable video"),
        "empty": (empty, "is empty"),
        "truncated": (_cut(start_first, folder / "cut.mp4", 0.6), "truncated"),
        "truncated_at_packet": (_cut_at_packet(start_first, folder / "cut2.mp4"), "truncated"),
        "truncated_matroska": (_cut(matroska, folder / "cut.mkv", 0.6), "truncated"),
        "truncated_avi": (_cut(avi, folder / "cut.avi", 0.6), "truncated"),
        "truncated_avi_at_packet": (_cut_at_packet(avi, folder / "cut2.avi"), "truncated"),
        "without_index": (_cut(index_last, folder / "cut3.mp4", 0.6), "not a readable video"),
        "audio_only": (_audio(folder / "audio.mp4"), "no video stream"),
        "no_frames": (_frameless(folder / "none.mp4"), "without a single frame"),
    }


def _cut(source: Path, path: Path, share: float) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def _cut_at_packet(source: Path, path: Path) -> Path:
    """Cuts the file between two packets, so that no broken packet reveals the cut."""
    import av

    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][50]
    path.write_bytes(source.read_bytes()[: packet.pos])
    return path


def _audio(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _frameless(path: Path) -> Path:
    """Writes an MP4 header that declares a video stream, without data."""
    import av

    with av.open(str(path), "w", options={"movflags": "+empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def _shift(source: Path, path: Path, *, frames: int) -> Path:
    """Moves packets earlier by `frames` (negative: later); an edit list hides times before 0."""
    import av

    with (
        av.open(str(source)) as reading,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as writing,
    ):
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        shift = int(frames / stream.average_rate / stream.time_base)
        for packet in reading.demux(stream):
            if packet.dts is not None:
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = copy
                writing.mux(packet)
    return path


def _rotate(source: Path, path: Path, matrix: tuple[int, int, int, int, int, int]) -> Path:
    """Writes a display matrix (a, b, c, d, x, y) into the track header, as phones do."""
    a, b, c, d, x, y = matrix
    data = bytearray(source.read_bytes())
    begin = data.index(b"tkhd") + 4 + 40
    packed = struct.pack(">9i", a, b, 0, c, d, 0, x * FIXED, y * FIXED, ONE)
    data[begin : begin + 36] = packed
    path.write_bytes(data)
    return path
