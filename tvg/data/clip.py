"""From a video file to sampled, resized frames."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tvg.data.decode import Frames, OpenVideo, VideoDecoder, VideoError, VideoInfo
from tvg.data.sampling import (
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
from tvg.data.time_limit import TimeLimitedDecoder
from tvg.types import LeadIn, Segment, VideoClip

_CACHED_FLOATS = 2**18  # of one megabyte


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The part of a file that is shown: `num_shown` of its steps `first` to `last`.

    A step is a frame where the rate is constant (`VideoInfo`). The steps are numbered as if the
    lead-in had been inserted into the file before `first`.
    """

    first: int
    last: int  # included; counts the lead-in's steps
    num_lead_in: int
    num_shown: int
    size: tuple[int, int]  # height, width
    bounds_s: tuple[float, float]  # of the shown part in the file's seconds, without the lead-in


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

    def load(
        self,
        path: str | os.PathLike[str],
        window: Segment | None = None,
        lead_in: LeadIn | None = None,
    ) -> VideoClip:
        """Returns the clip of a file, or of `window` seconds of it: all of it, or an error.

        A file that is cut to the window already is shown whole (`resolve_window`). A lead-in is
        sampled as if it were part of the file, so the clip is that of a file with as many more
        frames. Times are relative to the window's start, or to the lead-in's: when each frame
        appears, so that in a file of a variable rate one that was on screen before the window
        has a time below 0, or that of the lead-in's end. `sampled_fps` is frames shown per second
        of the frames in the window and the lead-in, as in qwen-vl-utils.

        Raises:
            VideoError: the file cannot be read in full, in time, holds no frame in the window, or
                fits it neither whole nor cut.
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
        """Returns T, H and W of the clip that `load` gives of such a file, without reading it.

        Raises:
            ValueError: `load` would refuse the file or the window.
        """
        plan = self._plan(info, window, lead_in)
        return plan.num_shown, *plan.size

    def _plan(self, info: VideoInfo, window: Segment | None, lead_in: LeadIn | None) -> _Plan:
        # A stream without frames or rate has no duration: the sampling below says so.
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
    """Returns float64 [T]: when each shown frame appears, in the seconds of `_Plan`'s steps."""
    # One division in float64, as in qwen-vl-utils: other ways differ in the last bit.
    times_s = torch.tensor(steps, dtype=torch.float64) / info.step_fps
    own = [i for i, step in enumerate(steps) if step >= plan.first + plan.num_lead_in]
    if info.variable is not None:
        in_file = info.variable.appearance_times_s([steps[i] - plan.num_lead_in for i in own])
        lead_in_s = plan.num_lead_in / info.step_fps
        own_s = torch.tensor(in_file, dtype=torch.float64) + lead_in_s
        if plan.num_lead_in:  # a frame from before the window appears when the lead-in is over
            own_s = own_s.clamp(min=plan.bounds_s[0] + lead_in_s)
        times_s[own] = own_s
    return times_s


def _read_frames(video: OpenVideo, steps: list[int], plan: _Plan, lead_in: LeadIn | None) -> Tensor:
    """Returns uint8 [T, 3, H, W]: the lead-in's frames, then the file's."""
    start = plan.first + plan.num_lead_in  # of the file's own frames among the shown ones
    wanted = video.info.frame_indices([step - plan.num_lead_in for step in steps if step >= start])
    num_filler = len(steps) - len(wanted)
    if not num_filler:
        return _read_resized(video, wanted, plan.size)
    assert lead_in is not None
    is_frozen = lead_in.kind == "freeze"
    # The first frame is read with the others: the decoder goes through the file once.
    first_frame_index = video.info.frame_indices([plan.first])
    read = _read_resized(video, first_frame_index * is_frozen + wanted, plan.size)
    first_frame, rest = (read[:1], read[1:]) if is_frozen else (None, read)
    return torch.cat([_filler(lead_in, num_filler, plan.size, first_frame), rest])


def _filler(
    lead_in: LeadIn, num_frames: int, size: tuple[int, int], first_frame: Tensor | None
) -> Tensor:
    """Returns the shown frames of a lead-in: uint8 [num_frames, 3, *size]."""
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
    """Returns uint8 [T, 3, H, W]; frames of the file's own size exist one chunk at a time."""
    frames = torch.empty((len(indices), 3, *size), dtype=torch.uint8)
    num_done = 0
    for chunk in video.frames(indices):
        frames[num_done : num_done + len(chunk)] = resize_frames(chunk, size)
        num_done += len(chunk)
    assert num_done == len(indices), (num_done, len(indices))
    return frames


def resize_frames(frames: Frames, size: tuple[int, int]) -> Tensor:
    """Resizes uint8 [t, H, W, 3] to uint8 [t, 3, *size], bicubic with antialias.

    Computed in floats, as by torchvision's `resize` (importing which would take a second).
    """
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if pixels.shape[2:] == size:
        return pixels.contiguous()
    resized = torch.empty((len(frames), 3, *size), dtype=torch.uint8)
    # Few frames at a time, one if they are large: their floats stay in the processor's cache.
    at_once = max(1, _CACHED_FLOATS // pixels.shape[1:].numel())
    for begin in range(0, len(frames), at_once):
        floats = pixels[begin : begin + at_once].to(
            torch.float32, memory_format=torch.contiguous_format
        )
        floats = interpolate(floats, size=size, mode="bicubic", antialias=True)
        resized[begin : begin + at_once] = floats.clamp_(0, 255).round_()
    return resized
