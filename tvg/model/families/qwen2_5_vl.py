"""Qwen2.5-VL (arXiv 2502.13923), and models derived from it, such as MiMo-VL.

Most layers of the vision tower attend within windows. Time positions are proportional to seconds,
so the language model sees the actual sampling rate of a clip.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvg.model.families.base import VisionSizes
from tvg.model.families.qwen import QwenVL, patch_values, second_per_grid_s
from tvg.model.families.tiny import (
    PIXEL_LIMITS,
    VISION_HEADS,
    VISION_HIDDEN,
    TinyParts,
    TinySizes,
    text_config,
    vision_ids,
)
from tvg.types import PromptBatch


class Qwen2_5VL(QwenVL):  # noqa: N801  (the name of the model)
    """Qwen2.5-VL; see the module docstring."""

    model_type = "qwen2_5_vl"
    processor_classes = ("Qwen2_5_VLProcessor", "Qwen2VLProcessor")

    @property
    def model_class(self) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration

    def encode_trunk(self, model: Any, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        features = super().encode_trunk(model, pixel_values, grid_thw)
        config = model.config.vision_config
        order = window_order(
            grid_thw,
            spatial_merge=config.spatial_merge_size,
            window_tokens=config.window_size // config.spatial_merge_size // config.patch_size,
        )
        groups = features.view(len(order), config.spatial_merge_size**2, -1)
        return groups[torch.argsort(order)].flatten(0, 1)

    def position_ids(self, config: Any, prompts: PromptBatch) -> Tensor:
        return self.positions_in_time(
            config,
            prompts,
            second_per_grid_s(config, prompts),
            positions_per_second=config.vision_config.tokens_per_second,
        )

    def vision_sizes(self, config: Any) -> VisionSizes:
        vision = config.vision_config
        return VisionSizes(
            hidden=vision.hidden_size,
            mlp=vision.intermediate_size,
            mlp_products=3,
            layers=vision.depth,
            full_layers=len(set(vision.fullatt_block_indexes) & set(range(vision.depth))),
            # Rounded down to a multiple of merged tokens, as in transformers.
            window=vision.window_size
            // vision.spatial_merge_size
            // vision.patch_size
            * vision.spatial_merge_size,
            merge=vision.spatial_merge_size**2,
            mergers=1,
            merger_hidden=vision.spatial_merge_size**2 * vision.hidden_size,
            patch_values=patch_values(vision),
        )

    def tiny(self, tokenizer: Any, sizes: TinySizes) -> TinyParts:
        from transformers import (
            Qwen2_5_VLConfig,
            Qwen2_5_VLProcessor,
            Qwen2VLImageProcessor,
            Qwen2VLVideoProcessor,
        )

        config = Qwen2_5_VLConfig(
            text_config=text_config(
                tokenizer, sizes, rope={"rope_theta": 1e6, "mrope_section": [4, 6, 6]}
            ),
            vision_config={
                "depth": 2,
                "hidden_size": VISION_HIDDEN,
                "intermediate_size": 2 * VISION_HIDDEN,
                "num_heads": VISION_HEADS,
                "out_hidden_size": sizes.hidden_size,
                "fullatt_block_indexes": [1],
                "tokens_per_second": 2,
                "initializer_range": sizes.initializer_range,
            },
            tie_word_embeddings=True,
            **vision_ids(tokenizer),
        )
        processor = Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=dict(PIXEL_LIMITS)),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(size=dict(PIXEL_LIMITS)),
            chat_template=tokenizer.chat_template,
        )
        return TinyParts(config=config, processor=processor)


def window_order(grid_thw: Tensor, *, spatial_merge: int, window_tokens: int) -> Tensor:
    """Returns the order in which the tower's blocks process merged tokens: int64 [tokens].

    Qwen2.5-VL attends inside windows of `window_tokens`**2 merged tokens of a frame. The order is
    clip by clip and frame by frame. Within a frame, windows are in row-major order; so are the
    tokens within a window.
    """
    orders, offset = [], 0
    for time, height, width in grid_thw.tolist():
        rows, columns = height // spatial_merge, width // spatial_merge
        t, y, x = torch.meshgrid(
            torch.arange(time), torch.arange(rows), torch.arange(columns), indexing="ij"
        )
        # Frame, window row, window column, row and column in the window: digits of one number.
        digits = (t, y // window_tokens, x // window_tokens, y % window_tokens, x % window_tokens)
        bases = (time, rows, columns, window_tokens, window_tokens)
        place = torch.zeros_like(t)
        for digit, base in zip(digits, bases, strict=True):
            place = place * base + digit
        orders.append(torch.argsort(place.flatten()) + offset)
        offset += time * rows * columns
    return torch.cat(orders).to(grid_thw.device)
