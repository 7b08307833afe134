"""Qwen3-VL.

Each time step of a clip is preceded by its time as text, e.g. `<12.3 seconds>`. The step has the
positions of an image, which encode no time. The language model also receives features of the
trunk's middle layers (DeepStack, arXiv 2406.04334). A separate merger projects the features of each
of these layers. The result is added to the states after one of the language model's first layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tvg.model.families.base import VideoTokens, VisionSizes
from tvg.model.families.clip_text import ClipText, TimedSteps, middle_time
from tvg.model.families.qwen import QwenVL, patch_values
from tvg.model.families.tiny import (
    HEAD_SIZE,
    VISION_HEADS,
    VISION_HIDDEN,
    TinyParts,
    TinySizes,
    text_config,
    vision_ids,
)

# Pixel limits of the released processor.
PIXEL_LIMITS = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}


class Qwen3VL(QwenVL):
    """Qwen3-VL; its trunk features are those of the last layer and then of each deepstack layer."""

    model_type = "qwen3_vl"
    processor_classes = ("Qwen3VLProcessor",)
    merger_prefixes = ("visual.merger.", "visual.deepstack_merger_list.")
    clip_config = "data/clip=qwen3"

    def clip_text(self, frame_times: str | None) -> ClipText:
        """Returns timed steps, by default in the format of the release."""
        return TimedSteps(text=frame_times or "<{time_s:.1f} seconds>", time_of=middle_time)

    @property
    def model_class(self) -> Any:
        from transformers import Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration

    def prepare(self, model: Any) -> None:
        num_deep = len(model.config.vision_config.deepstack_visual_indexes)
        num_layers = model.config.text_config.num_hidden_layers
        if num_deep >= num_layers:  # features added after the last layer would not be read
            raise ValueError(
                f"model.path: {num_deep} deepstack layers of the vision tower need more than "
                f"{num_layers} layers in the language model"
            )
        super().prepare(model)

    def mergers(self, model: Any) -> list[nn.Module]:
        return [*super().mergers(model), *_deepstack_mergers(model)]

    def encode_trunk(self, model: Any, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        states: list[Tensor] = []
        hooks = [
            merger.register_forward_pre_hook(lambda _, given: states.append(given[0]))
            for merger in _deepstack_mergers(model)
        ]
        try:
            last = super().encode_trunk(model, pixel_values, grid_thw)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([last, *states], dim=-1)

    def merge(self, model: Any, features: Tensor) -> VideoTokens:
        mergers = self.mergers(model)
        dtype = next(mergers[0].parameters()).dtype
        parts = features.to(dtype).chunk(len(mergers), dim=-1)
        tokens = [merger(part.contiguous()) for merger, part in zip(mergers, parts, strict=True)]
        return VideoTokens(embeds=tokens[0], deepstack=tuple(tokens[1:]))

    def feature_width(self, vision_config: Any) -> int:
        return int(vision_config.hidden_size) * (1 + len(vision_config.deepstack_visual_indexes))

    def vision_sizes(self, config: Any) -> VisionSizes:
        vision = config.vision_config
        return VisionSizes(
            hidden=vision.hidden_size,
            mlp=vision.intermediate_size,
            mlp_products=2,
            layers=vision.depth,
            full_layers=vision.depth,
            window=1,
            merge=vision.spatial_merge_size**2,
            mergers=1 + len(vision.deepstack_visual_indexes),
            merger_hidden=vision.spatial_merge_size**2 * vision.hidden_size,
            patch_values=patch_values(vision),
        )

    def tiny(self, tokenizer: Any, sizes: TinySizes) -> TinyParts:
        """Returns a model with two deepstack layers, so `num_layers` must be at least 3."""
        from transformers import (
            Qwen2VLImageProcessor,
            Qwen3VLConfig,
            Qwen3VLProcessor,
            Qwen3VLVideoProcessor,
        )

        rope = {"rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
        config = Qwen3VLConfig(
            text_config=text_config(tokenizer, sizes, rope=rope) | {"head_dim": HEAD_SIZE},
            vision_config={
                "depth": 3,
                "hidden_size": VISION_HIDDEN,
                "intermediate_size": 2 * VISION_HIDDEN,
                "num_heads": VISION_HEADS,
                "out_hidden_size": sizes.hidden_size,
                "num_position_embeddings": 8 * 8,
                "deepstack_visual_indexes": [0, 1],
                "initializer_range": sizes.initializer_range,
            },
            tie_word_embeddings=True,
            **vision_ids(tokenizer),
        )
        processor = Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=dict(PIXEL_LIMITS), patch_size=16),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(size=dict(PIXEL_LIMITS)),
            chat_template=tokenizer.chat_template,
        )
        return TinyParts(config=config, processor=processor)


def _deepstack_mergers(model: Any) -> list[nn.Module]:
    """Returns the deepstack mergers in the order of the layers that they belong to."""
    visual = model.model.visual
    layers = list(visual.deepstack_visual_indexes)
    return [visual.deepstack_merger_list[layers.index(layer)] for layer in sorted(layers)]
