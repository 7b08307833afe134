"""Unusable video files of the kinds found among downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

UNDECODABLE_KINDS = ("empty", "truncated", "text", "directory", "denied", "no_frames", "audio")
# AV1 support depends on the installation. "garbled" is not here: only decoding detects it.
KINDS = (*UNDECODABLE_KINDS, "av1")


def write_broken(path: Path, kind: str, write_good: Callable[[Path], Path]) -> Path:
    """Writes an unusable file of the given kind; `write_good` writes an intact video."""
    if kind == "empty":
        path.touch()
    elif kind == "truncated":
        write_good(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "garbled":
        write_good(path)
        raw = bytearray(path.read_bytes())
        begin, end = raw.find(b"mdat") + 8, raw.find(b"moov")
        assert 8 < begin < end
        raw[(begin + end) // 2 : end] = bytes(end - (begin + end) // 2)
        path.write_bytes(raw)
    elif kind == "text":
        path.write_text("<html>404 Not Found</html>\n" * 50)
    elif kind == "directory":
        path.mkdir()
    elif kind == "denied":
        write_good(path)
        path.chmod(0)
    elif kind == "no_frames":
        _write_stream(path, "libx264", num_frames=0)
    elif kind == "audio":
        _write_audio(path)
    else:
        assert kind == "av1", kind
        _write_stream(path, "libsvtav1", num_frames=30)
    return path


def _write_stream(path: Path, codec: str, *, num_frames: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(num_frames):
            pixels = np.full((96, 128, 3), index * 5, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if num_frames:
            container.mux(stream.encode())
        else:
            container.start_encoding()


def _write_audio(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(10):
            samples = np.zeros((1, 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
