"""Base class of the Qwen-VL families: mergers inside the tower `visual`, three rotary axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tvg.core.positions import mrope_position_ids
from tvg.model.families.base import Family, VideoTokens
from tvg.model.families.clip_text import ClipText, OneRun, TimedSteps, first_time
from tvg.model.families.patching import GridPatches, Patching
from tvg.model.families.qwen_attention import batch_windows
from tvg.types import PromptBatch


class QwenVL(Family):
    """Base class of families whose transformers classes are built like Qwen2-VL's."""

    vision_tokens = (
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    trunk_prefix = "visual."
    merger_prefixes: tuple[str, ...] = ("visual.merger.",)
    clip_config = "data/clip=qwen"  # config with a frame size for the family's patches

    def make_patching(self, video_processor: Any) -> Patching:
        return GridPatches(video_processor=video_processor, clip_config=self.clip_config)

    def clip_text(self, frame_times: str | None) -> ClipText:
        """Returns one run of placeholders, or timed steps if times are requested."""
        return OneRun() if frame_times is None else TimedSteps(text=frame_times, time_of=first_time)

    def prepare(self, model: Any) -> None:
        batch_windows(model)

    def tower(self, model: Any) -> nn.Module:
        tower: nn.Module = model.model.visual
        return tower

    def mergers(self, model: Any) -> list[nn.Module]:
        return [model.model.visual.merger]

    def encode_trunk(self, model: Any, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        visual = model.model.visual
        states: Tensor = visual(
            pixel_values.type(visual.dtype), grid_thw=grid_thw
        ).last_hidden_state
        return states

    def merge(self, model: Any, features: Tensor) -> VideoTokens:
        merger = model.model.visual.merger
        return VideoTokens(embeds=merger(features.to(next(merger.parameters()).dtype)))

    def position_ids(self, config: Any, prompts: PromptBatch) -> Tensor:
        """Returns positions whose time axis counts grid steps.

        If every time step is a separate span, the time within a span starts at 0. As in the
        release, the text after a clip continues from the clip's largest position. transformers 5
        ignores the clip's length in time instead (see `tvg.core.positions`).
        """
        seconds = torch.ones(len(prompts.video_grid_thw), dtype=torch.float64)
        return self.positions_in_time(config, prompts, seconds, positions_per_second=1)

    def positions_in_time(
        self,
        config: Any,
        prompts: PromptBatch,
        second_per_grid_s: Tensor,
        *,
        positions_per_second: float,
    ) -> Tensor:
        """Returns positions, given the seconds per time step of each clip, float64 [clips]."""
        return mrope_position_ids(
            prompts.input_ids,
            prompts.attention_mask,
            video_grid_thw=prompts.video_grid_thw,
            second_per_grid_s=second_per_grid_s,
            vision_start_id=config.vision_start_token_id,
            video_token_id=config.video_token_id,
            spatial_merge=config.vision_config.spatial_merge_size,
            tokens_per_second=positions_per_second,
        )

    def is_video(self, config: Any, input_ids: Tensor) -> Tensor:
        return input_ids == config.video_token_id

    def num_patches(self, vision_config: Any, num_frames: int, height: int, width: int) -> int:
        steps = -(-num_frames // vision_config.temporal_patch_size)
        return int(steps * height * width // vision_config.patch_size**2)

    def feature_width(self, vision_config: Any) -> int:
        return int(vision_config.hidden_size)


def second_per_grid_s(config: Any, prompts: PromptBatch) -> Tensor:
    """Returns the seconds between two temporal grid steps of each clip: float64 [clips]."""
    temporal_patch: int = config.vision_config.temporal_patch_size
    return temporal_patch / prompts.sampled_fps


def patch_values(vision_config: Any) -> int:
    """Returns the number of values per patch."""
    frames, side = vision_config.temporal_patch_size, vision_config.patch_size
    return int(vision_config.in_channels * frames * side**2)
