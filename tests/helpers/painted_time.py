"""Videos whose frames encode their time in the luma, independent of the container's times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

# 5 s at 30 fps, then 3 fps up to 9.67 s, as by `select='if(lt(t,5),1,not(mod(n,10)))'`.
SLOWING_S = [n / 30 for n in range(300) if n < 150 or n % 10 == 0]
CODECS = {".webm": ("libvpx", {"crf": "4", "b": "4M", "deadline": "realtime", "cpu-used": "8"})}
H264 = ("libx264", {"preset": "ultrafast", "crf": "8", "threads": "1"})


def write_painted(
    path: Path,
    times_s: Sequence[float] = SLOWING_S,
    *,
    codec_options: dict[str, str] | None = None,
    delay_s: float = 0.0,
    audio_s: float = 0.0,
) -> Path:
    """Writes one frame per time t (below 11 s), which is encoded in the luma.

    The left half has luma 16 + 20 t, the right half 16 + 200 (t mod 1).

    Args:
        path: file to write; its extension selects the container and the codec.
        times_s: ascending times; each is painted on a frame and is the frame's timestamp.
        codec_options: such as {"bf": "3"}.
        delay_s: added to all timestamps, but not to the painted times.
        audio_s: length of a silent audio stream; 0: no audio stream.
    """
    codec, options = CODECS.get(path.suffix, H264)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        stream.options = {**options, **(codec_options or {})}
        audio = container.add_stream("aac", rate=16_000, layout="mono") if audio_s else None
        for time_s in times_s:
            planes = np.full((96, 96), 128, np.uint8)  # 64 rows of luma, 32 of chroma
            planes[:64, :48] = round(16 + 20 * time_s)
            planes[:64, 48:] = round(16 + 200 * (time_s % 1))
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.time_base = Fraction(1, 90_000)
            frame.pts = round((time_s + delay_s) * 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for start in range(0, int(audio_s * 16_000), 1024) if audio is not None else ():
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate, silence.pts = 16_000, start
            container.mux(audio.encode(silence))
        if audio is not None:
            container.mux(audio.encode())
    return path


def painted_times_s(frames: torch.Tensor) -> torch.Tensor:
    """Returns the times painted on frames, uint8 [T, 3, H, W], within 5 ms."""
    luma = frames.float().mean(1) * 219 / 255 + 16
    width = luma.shape[2]
    left = luma[:, :, width // 8 : width * 3 // 8].mean((1, 2))
    right = luma[:, :, width * 5 // 8 : width * 7 // 8].mean((1, 2))
    part_s = (right - 16) / 200
    return torch.round((left - 16) / 20 - part_s) + part_s
