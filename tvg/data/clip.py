"""From a video file to sampled, resized frames."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from tvg.data.decode import Frames, OpenVideo, VideoDecoder, VideoError
from tvg.data.sampling import (
    FrameSampling,
    frame_indices,
    frame_range,
    max_pixels_per_frame,
    num_sampled_frames,
    smart_resize,
    window_bounds,
)
from tvg.data.time_limit import TimeLimitedDecoder
from tvg.types import Segment, VideoClip


class ClipLoader:
    """Loads clips as Qwen2.5-VL is shown them: frames, sizes and pixels as in qwen-vl-utils 0.0.14.

    Args:
        sampling: which frames, how large.
        decoder: what reads the file.
        timeout_s: the most time to wait for the decoder, per clip; None: no limit, and no process
            of its own for the decoder.
    """

    def __init__(
        self, *, sampling: FrameSampling, decoder: VideoDecoder, timeout_s: float | None
    ) -> None:
        self.sampling = sampling
        self.timeout_s = timeout_s
        self.decoder = (
            decoder
            if timeout_s is None
            else TimeLimitedDecoder(decoder=decoder, timeout_s=timeout_s)
        )

    def load(self, path: str | os.PathLike[str], window: Segment | None = None) -> VideoClip:
        """Returns the clip of a file, or of `window` seconds of it: all of it, or an error.

        Times are relative to the window's start. `sampled_fps` is frames shown per second of the
        frames in the window, as in qwen-vl-utils.

        Raises:
            VideoError: the file cannot be read in full, in time, or holds no frame in the window.
        """
        with self.decoder.open(path) as video:
            info = video.info
            try:
                first, last = frame_range(info.num_frames, info.fps, window)
                num = num_sampled_frames(last - first + 1, info.fps, self.sampling)
                size = self._size(num, info.height, info.width)
            except ValueError as error:
                raise VideoError(path, str(error)) from error
            indices = frame_indices(first, last, num)
            frames = _read_resized(video, indices, size)
        start_s, end_s = window_bounds(info.num_frames, info.fps, window)
        return VideoClip(
            frames=frames,
            sampled_fps=num / (last - first + 1) * info.fps,
            frame_times_s=torch.tensor(indices, dtype=torch.float64) / info.fps - start_s,
            duration_s=end_s - start_s,
        )

    def _size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        return smart_resize(
            height,
            width,
            factor=self.sampling.resize_factor,
            min_pixels=self.sampling.min_pixels,
            max_pixels=max_pixels_per_frame(num_frames, self.sampling),
        )


def _read_resized(video: OpenVideo, indices: list[int], size: tuple[int, int]) -> Tensor:
    """Returns uint8 [T, 3, H, W]; frames of the file's own size exist one chunk at a time."""
    frames = torch.empty((len(indices), 3, *size), dtype=torch.uint8)
    num_done = 0
    for chunk in video.frames(indices):
        frames[num_done : num_done + len(chunk)] = resize_frames(chunk, size)
        num_done += len(chunk)
    assert num_done == len(indices), (num_done, len(indices))
    return frames


def resize_frames(frames: Frames, size: tuple[int, int]) -> Tensor:
    """Resizes uint8 [t, H, W, 3] to uint8 [t, 3, *size], bicubic with antialias."""
    resized: Tensor = resize(
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        list(size),
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    return resized
