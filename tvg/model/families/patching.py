"""Converts frames to normalised patches, the input of a vision tower.

Patches of bytes (`raw`) have the same layout. `pixel_table` has the normalised value of each byte,
so the patches can be sent to a GPU as bytes and normalised there (`PromptBatch.to`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tvg.types import VideoClip

CAP = "cap_pixels_per_frame"
_AS_BYTES = {"do_rescale": False, "do_normalize": False}


class Patching(Protocol):
    """Cuts clips into patches; the patches that are merged into one token are adjacent."""

    @property
    def merge(self) -> int:
        """Patches per token along each side."""

    @property
    def num_frames(self) -> int:
        """Frames per patch."""

    @property
    def token_side(self) -> int:
        """Side of a token in pixels."""

    @property
    def clip_config(self) -> str:
        """Hydra override that resizes frames to multiples of `token_side`."""

    def __call__(self, clips: Sequence[VideoClip]) -> tuple[Tensor, Tensor]:
        """Returns all patches, [patches, values per patch], and the grids, int64 [clips, 3]."""

    def raw(self, clips: Sequence[VideoClip]) -> tuple[Tensor, Tensor]:
        """Returns the same patches before normalisation, uint8, and the grids."""


@dataclass(frozen=True, kw_only=True)
class GridPatches:
    """Cuts Qwen-VL's patches, of two frames each, with the checkpoint's video processor."""

    video_processor: Any
    clip_config: str

    @property
    def merge(self) -> int:
        return int(self.video_processor.merge_size)

    @property
    def num_frames(self) -> int:
        return int(self.video_processor.temporal_patch_size)

    @property
    def token_side(self) -> int:
        return int(self.video_processor.patch_size * self.video_processor.merge_size)

    def __call__(self, clips: Sequence[VideoClip]) -> tuple[Tensor, Tensor]:
        return self._cut(clips, {})

    def raw(self, clips: Sequence[VideoClip]) -> tuple[Tensor, Tensor]:
        return self._cut(clips, _AS_BYTES)

    def _cut(self, clips: Sequence[VideoClip], options: dict[str, bool]) -> tuple[Tensor, Tensor]:
        # Frames already have their final size; transformers >= 5.19 warns unless the cap is set.
        cap = {CAP: True} if hasattr(self.video_processor, CAP) else {}
        out = self.video_processor(
            videos=[_even_frames(clip.frames, self.num_frames) for clip in clips],
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
            **cap,
            **options,
        )
        return out["pixel_values_videos"], out["video_grid_thw"]


@dataclass(frozen=True, kw_only=True)
class FramePatches:
    """Cuts patches of single frames; the video processor only normalises the frames."""

    video_processor: Any
    clip_config: str
    merge: int
    token_side: int
    num_frames: int = 1

    def __call__(self, clips: Sequence[VideoClip]) -> tuple[Tensor, Tensor]:
        return self._cut_all(clips, {})

    def raw(self, clips: Sequence[VideoClip]) -> tuple[Tensor, Tensor]:
        return self._cut_all(clips, _AS_BYTES)

    def _cut_all(
        self, clips: Sequence[VideoClip], options: dict[str, bool]
    ) -> tuple[Tensor, Tensor]:
        cut = [self._cut(clip, options) for clip in clips]
        patches = torch.cat([patches for patches, _ in cut])
        return patches, torch.tensor([grid for _, grid in cut], dtype=torch.int64)

    def _cut(
        self, clip: VideoClip, options: dict[str, bool]
    ) -> tuple[Tensor, tuple[int, int, int]]:
        (pixels,) = self.video_processor(
            videos=[clip.frames],
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
            **options,
        )["pixel_values_videos"]
        side = self.token_side // self.merge
        num_frames, channels, height, width = pixels.shape
        rows, columns = height // self.token_side, width // self.token_side
        split = pixels.view(num_frames, channels, rows, self.merge, side, columns, self.merge, side)
        patches = split.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, channels * side**2)
        return patches, (num_frames, rows * self.merge, columns * self.merge)


def pixel_table(patching: Patching) -> Tensor | None:
    """Returns the normalised value of each byte, float32 [3, 256], or None.

    The values are read from the processor's own output, so they are equal bit for bit. None: the
    processor does not normalise each pixel independently.
    """
    side, num_frames = patching.token_side, patching.num_frames
    assert side**2 >= 256, side  # every channel has to contain every byte
    shape = (num_frames, 3, side, side)
    frames = torch.arange(num_frames * 3 * side**2).remainder(256).to(torch.uint8).view(shape)
    times_s = torch.arange(num_frames, dtype=torch.float64)
    clip = VideoClip(frames=frames, sampled_fps=1.0, frame_times_s=times_s, duration_s=1.0)
    (patches, _), (raw, _) = patching([clip]), patching.raw([clip])
    if raw.dtype != torch.uint8 or raw.shape != patches.shape:
        return None
    values, places = (x.unflatten(1, (3, -1)).transpose(0, 1).flatten(1) for x in (patches, raw))
    table = values.new_zeros((3, 256)).scatter_(1, places.long(), values)
    return table if torch.equal(table.gather(1, places.long()), values) else None


def clip_patches(
    clips: Sequence[VideoClip], patching: Patching, *, as_bytes: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns normalised patches of all clips, and the grid of each clip: int64 [clips, 3].

    With `as_bytes`, the patches are uint8, before normalisation.

    Raises:
        ValueError: a frame side is not a multiple of the model's token size.
    """
    side = patching.token_side
    for height, width in {tuple(clip.frames.shape[-2:]) for clip in clips}:
        if height % side or width % side:
            raise ValueError(
                f"data.clip.sampling.resize_factor: frames of {width} x {height} pixels do not "
                f"divide into this model's tokens of {side} x {side} pixels; use "
                f"{patching.clip_config}"
            )
    return patching.raw(clips) if as_bytes else patching(clips)


def _even_frames(frames: Tensor, multiple: int) -> Tensor:
    missing = -frames.shape[0] % multiple
    return torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]) if missing else frames
