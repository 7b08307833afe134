"""InternVL3 (arXiv 2504.10479), in transformers' own classes (the `-hf` checkpoints).

Every frame is a separate image after "Frame1: ", "Frame2: ", ...; positions are those of plain
text. The model gets the times of frames only through `prompt.frame_times`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from tvg.model.families.base import Family, VideoTokens, VisionSizes
from tvg.types import PromptBatch

PATCH, MERGE = 14, 2  # as in every released checkpoint; see tvg.data.patches


class InternVL(Family):
    """InternVL3; see the module docstring."""

    model_class = InternVLForConditionalGeneration
    vision_tokens = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")

    def prepare(self, model: Any) -> None:
        config = model.config
        found = {
            "vision_config.patch_size": list(config.vision_config.patch_size),
            "vision_config.hidden_dropout_prob": config.vision_config.hidden_dropout_prob,
            "downsample_ratio": config.downsample_ratio,
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        }
        expected = dict(zip(found, ([PATCH] * 2, 0, 1 / MERGE, -1, "default"), strict=True))
        if found != expected:
            raise ValueError(f"model.path: an InternVL of {expected} is supported, got {found}")

    def tower(self, model: Any) -> nn.Module:
        tower: nn.Module = model.model.vision_tower
        return tower

    def mergers(self, model: Any) -> list[nn.Module]:
        return [model.model.multi_modal_projector]

    def encode_trunk(self, model: Any, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        tower = model.model.vision_tower
        pixels = pixel_values.type(tower.dtype)
        grids = grid_thw.tolist()
        clips = pixels.split([time * height * width for time, height, width in grids])
        return torch.cat(
            [
                _in_groups(tower(pixel_values=_images(clip, grid)).last_hidden_state[:, 1:], grid)
                for clip, grid in zip(clips, grids, strict=True)
            ]
        )

    def merge(self, model: Any, features: Tensor) -> VideoTokens:
        merger = model.model.multi_modal_projector
        groups = features.to(next(merger.parameters()).dtype).unflatten(0, (-1, MERGE**2))
        return VideoTokens(embeds=merger(groups.flatten(1)))

    def position_ids(self, config: Any, prompts: PromptBatch) -> Tensor:
        mask = prompts.attention_mask.long()
        positions = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 1)
        return positions.expand(3, -1, -1)

    def language_positions(self, positions: Tensor) -> Tensor:
        return positions[0]

    def is_video(self, config: Any, input_ids: Tensor) -> Tensor:
        return input_ids == config.image_token_id

    def feature_width(self, vision_config: Any) -> int:
        return int(vision_config.hidden_size)

    def num_patches(self, vision_config: Any, num_frames: int, height: int, width: int) -> int:
        return num_frames * height * width // PATCH**2

    def vision_sizes(self, config: Any) -> VisionSizes:
        vision = config.vision_config
        return VisionSizes(
            hidden=vision.hidden_size,
            mlp=vision.intermediate_size,
            mlp_products=2,
            layers=vision.num_hidden_layers,
            full_layers=vision.num_hidden_layers,
            window=1,
            merge=MERGE**2,
            mergers=1,
            merger_hidden=config.text_config.hidden_size,
            patch_values=vision.num_channels * PATCH**2,
        )


def _images(patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Converts patches grouped by token to images: [T, channels, H, W] in pixels."""
    time, height, width = grid
    shape = (time, height // MERGE, width // MERGE, MERGE, MERGE, -1, PATCH, PATCH)
    pixels = patches.view(shape).permute(0, 5, 1, 3, 6, 2, 4, 7)
    return pixels.reshape(time, -1, height * PATCH, width * PATCH)


def _in_groups(states: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Groups states of images, [T, h * w, C] in reading order, by token."""
    time, height, width = grid
    shape = (time, height // MERGE, MERGE, width // MERGE, MERGE, -1)
    return states.reshape(shape).transpose(2, 3).flatten(0, 4)
