"""Qwen2-VL (arXiv 2409.12191).

Time positions count steps of the clip's grid, not seconds. The sampling rate of a clip does not
reach this model, unless `prompt.frame_times` writes times into the prompt.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2VLForConditionalGeneration

from tvg.model.families.base import VisionSizes
from tvg.model.families.qwen import QwenVL, patch_values


class Qwen2VL(QwenVL):
    """Qwen2-VL; see the module docstring."""

    model_class = Qwen2VLForConditionalGeneration

    def feature_width(self, vision_config: Any) -> int:
        # In this family, `hidden_size` is the width of the language model.
        return int(vision_config.embed_dim)

    def vision_sizes(self, config: Any) -> VisionSizes:
        vision = config.vision_config
        return VisionSizes(
            hidden=vision.embed_dim,
            mlp=int(vision.embed_dim * vision.mlp_ratio),
            mlp_products=2,
            layers=vision.depth,
            full_layers=vision.depth,
            window=1,
            merge=vision.spatial_merge_size**2,
            mergers=1,
            merger_hidden=vision.spatial_merge_size**2 * vision.embed_dim,
            patch_values=patch_values(vision),
        )
