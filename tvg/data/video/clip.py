"""Loads sampled, resized frames from a video file."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tvg.data.video.decode import Frames, OpenVideo, VideoDecoder, VideoError, VideoInfo
from tvg.data.video.sampling import (
    FrameSampling,
    frame_indices,
    frame_range,
    max_pixels_per_frame,
    num_lead_in_frames,
    num_sampled_frames,
    resolve_window,
    smart_resize,
    window_bounds,
)
from tvg.data.video.time_limit import TimeLimitedDecoder
from tvg.types import LeadIn, Segment, VideoClip

_CACHED_FLOATS = 2**18  # one MiB of float32


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The sampled part of a file: `num_shown` of the steps from `first` to `last`.

    At a constant frame rate a step is a frame (see `VideoInfo`). Steps are numbered as if the
    lead-in had been inserted into the file before `first`.
    """

    first: int
    last: int  # inclusive; the lead-in's steps count
    num_lead_in: int
    num_shown: int
    size: tuple[int, int]  # height, width
    bounds_s: tuple[float, float]  # of the shown part in the file's seconds, without the lead-in


class ClipLoader:
    """Loads clips as Qwen2.5-VL expects: frames, sizes and pixels as in qwen-vl-utils 0.0.14.

    Args:
        sampling: number and size of the sampled frames.
        decoder: reads the file.
        timeout_s: maximum time to wait for the decoder per clip, in seconds. None sets no limit
            and runs the decoder in this process.
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

    def load(
        self,
        path: str | os.PathLike[str],
        window: Segment | None = None,
        lead_in: LeadIn | None = None,
    ) -> VideoClip:
        """Returns the clip of the entire file, or of the part inside `window` (seconds).

        If the file is already cut to the window, the clip shows the entire file (`resolve_window`).
        A lead-in is sampled as if it were part of the file.

        `frame_times_s` is the time at which each frame appears. It is relative to the start of the
        window, or of the lead-in if there is one. At a variable frame rate, the first frame may
        have appeared before the window. Its time is then negative, or the end of the lead-in.

        `sampled_fps` is the number of sampled frames divided by the duration of the frames in the
        window and the lead-in, as in qwen-vl-utils.

        Raises:
            VideoError: the file cannot be read completely within the time limit, has no frame in
                the window, or ends before the window's end and is not already cut to the window.
        """
        with self.decoder.open(path) as video:
            info = video.info
            try:
                plan = self._plan(info, window, lead_in)
            except ValueError as error:
                raise VideoError(path, str(error)) from error
            steps = frame_indices(plan.first, plan.last, plan.num_shown)
            frames = _read_frames(video, steps, plan, lead_in)
        start_s, end_s = plan.bounds_s
        return VideoClip(
            frames=frames,
            sampled_fps=plan.num_shown / (plan.last - plan.first + 1) * info.step_fps,
            frame_times_s=_times_s(info, steps, plan) - start_s,
            duration_s=end_s - start_s + plan.num_lead_in / info.step_fps,
        )

    def frame_count_and_size(
        self, info: VideoInfo, window: Segment | None = None, lead_in: LeadIn | None = None
    ) -> tuple[int, int, int]:
        """Returns T, H and W of the clip that `load` would return, without opening the file.

        Raises:
            ValueError: `load` would refuse the file or the window.
        """
        plan = self._plan(info, window, lead_in)
        return plan.num_shown, *plan.size

    def _plan(self, info: VideoInfo, window: Segment | None, lead_in: LeadIn | None) -> _Plan:
        # A stream without frames or rate has no duration; `frame_range` below raises for it.
        num_steps, step_fps = info.num_steps, info.step_fps
        if num_steps > 0 and step_fps > 0:
            window = resolve_window(window, info.duration_s)
        first, last = frame_range(num_steps, step_fps, window)
        num_lead_in = num_lead_in_frames(lead_in, step_fps)
        last += num_lead_in
        num_shown = num_sampled_frames(last - first + 1, step_fps, self.sampling)
        size = smart_resize(
            info.height,
            info.width,
            factor=self.sampling.resize_factor,
            min_pixels=self.sampling.min_pixels,
            max_pixels=max_pixels_per_frame(num_shown, self.sampling),
        )
        return _Plan(
            first=first,
            last=last,
            num_lead_in=num_lead_in,
            num_shown=num_shown,
            size=size,
            bounds_s=window_bounds(num_steps, step_fps, window),
        )


def _times_s(info: VideoInfo, steps: list[int], plan: _Plan) -> Tensor:
    """Returns float64 [T]: the time at which each frame appears, with the lead-in inserted."""
    # One float64 division, as in qwen-vl-utils; other computations differ in the last bit.
    times_s = torch.tensor(steps, dtype=torch.float64) / info.step_fps
    own = [i for i, step in enumerate(steps) if step >= plan.first + plan.num_lead_in]
    if info.variable is not None:
        in_file = info.variable.appearance_times_s([steps[i] - plan.num_lead_in for i in own])
        lead_in_s = plan.num_lead_in / info.step_fps
        own_s = torch.tensor(in_file, dtype=torch.float64) + lead_in_s
        if plan.num_lead_in:  # a frame from before the window appears at the lead-in's end
            own_s = own_s.clamp(min=plan.bounds_s[0] + lead_in_s)
        times_s[own] = own_s
    return times_s


def _read_frames(video: OpenVideo, steps: list[int], plan: _Plan, lead_in: LeadIn | None) -> Tensor:
    """Returns uint8 [T, 3, H, W]: the lead-in's frames, then the file's."""
    start = plan.first + plan.num_lead_in  # first step that belongs to the file
    wanted = video.info.frame_indices([step - plan.num_lead_in for step in steps if step >= start])
    num_filler = len(steps) - len(wanted)
    if not num_filler:
        return _read_resized(video, wanted, plan.size)
    assert lead_in is not None
    is_frozen = lead_in.kind == "freeze"
    # Read the first frame with the others, so that the decoder goes through the file once.
    first_frame_index = video.info.frame_indices([plan.first])
    read = _read_resized(video, first_frame_index * is_frozen + wanted, plan.size)
    first_frame, rest = (read[:1], read[1:]) if is_frozen else (None, read)
    return torch.cat([_filler(lead_in, num_filler, plan.size, first_frame), rest])


def _filler(
    lead_in: LeadIn, num_frames: int, size: tuple[int, int], first_frame: Tensor | None
) -> Tensor:
    """Returns the sampled frames of a lead-in: uint8 [num_frames, 3, *size]."""
    shape = (num_frames, 3, *size)
    match lead_in.kind:
        case "blank":
            return torch.zeros(shape, dtype=torch.uint8)
        case "noise":
            generator = torch.Generator().manual_seed(lead_in.seed)
            return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        case "freeze":
            assert first_frame is not None
            return first_frame.expand(shape)


def _read_resized(video: OpenVideo, indices: list[int], size: tuple[int, int]) -> Tensor:
    """Returns uint8 [T, 3, H, W]; only one chunk of full-size frames is in memory at a time."""
    frames = torch.empty((len(indices), 3, *size), dtype=torch.uint8)
    num_done = 0
    for chunk in video.frames(indices):
        frames[num_done : num_done + len(chunk)] = resize_frames(chunk, size)
        num_done += len(chunk)
    assert num_done == len(indices), (num_done, len(indices))
    return frames


def resize_frames(frames: Frames, size: tuple[int, int]) -> Tensor:
    """Resizes uint8 [t, H, W, 3] to uint8 [t, 3, *size], bicubic with antialias.

    Computes in float32, as torchvision's `resize` does; importing torchvision takes about a second.
    """
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if pixels.shape[2:] == size:
        return pixels.contiguous()
    resized = torch.empty((len(frames), 3, *size), dtype=torch.uint8)
    # Resize only a few frames at a time, so that their floats stay in the CPU cache.
    at_once = max(1, _CACHED_FLOATS // pixels.shape[1:].numel())
    for begin in range(0, len(frames), at_once):
        floats = pixels[begin : begin + at_once].to(
            torch.float32, memory_format=torch.contiguous_format
        )
        floats = interpolate(floats, size=size, mode="bicubic", antialias=True)
        resized[begin : begin + at_once] = floats.clamp_(0, 255).round_()
    return resized
