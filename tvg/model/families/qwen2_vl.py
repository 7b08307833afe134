"""Qwen2-VL (arXiv 2409.12191).

Time positions count steps of the clip's grid, not seconds. The model sees no times of a clip unless
`prompt.frame_times` writes them into the prompt.
"""

from __future__ import annotations

from typing import Any

from tvg.model.families.base import VisionSizes
from tvg.model.families.qwen import QwenVL, patch_values
from tvg.model.families.tiny import (
    PIXEL_LIMITS,
    VISION_HEADS,
    VISION_HIDDEN,
    TinyParts,
    TinySizes,
    text_config,
    vision_ids,
)


class Qwen2VL(QwenVL):
    """Qwen2-VL; see the module docstring."""

    model_type = "qwen2_vl"
    processor_classes = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")

    @property
    def model_class(self) -> Any:
        from transformers import Qwen2VLForConditionalGeneration

        return Qwen2VLForConditionalGeneration

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

    def tiny(self, tokenizer: Any, sizes: TinySizes) -> TinyParts:
        from transformers import (
            Qwen2VLConfig,
            Qwen2VLImageProcessor,
            Qwen2VLProcessor,
            Qwen2VLVideoProcessor,
        )

        config = Qwen2VLConfig(
            text_config=text_config(
                tokenizer, sizes, rope={"rope_theta": 1e6, "mrope_section": [4, 6, 6]}
            ),
            vision_config={
                "depth": 2,
                "embed_dim": VISION_HIDDEN,
                "mlp_ratio": 2,
                "num_heads": VISION_HEADS,
                "hidden_size": sizes.hidden_size,
                "initializer_range": sizes.initializer_range,
            },
            tie_word_embeddings=True,
            **vision_ids(tokenizer),
        )
        processor = Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=dict(PIXEL_LIMITS)),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(size=dict(PIXEL_LIMITS)),
            chat_template=tokenizer.chat_template,
        )
        return TinyParts(config=config, processor=processor)
