"""Writes frames as an H.264 mp4 file, the usual format of real datasets."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def encode_h264(path: Path, frames: NDArray[np.uint8], *, fps: int, crf: int = 30) -> None:
    """Encodes RGB frames [frames, height, width, 3] (even sides) at a constant rate.

    One thread and fixed settings give equal files for equal frames and one libx264 version.
    """
    _, height, width, _ = frames.shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": str(crf), "g": str(4 * fps)}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
