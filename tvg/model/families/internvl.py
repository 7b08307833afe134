"""InternVL3 (arXiv 2504.10479).

Supports the checkpoints whose names end in `-hf`, which use classes of transformers.

Every frame is a separate image after "Frame1: ", "Frame2: ", and so on. Positions are those of
plain text. The model sees the times of frames only if `prompt.frame_times` is set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tvg.model.families.base import Family, VideoTokens, VisionSizes
from tvg.model.families.clip_text import ClipText, NumberedFrames
from tvg.model.families.patching import FramePatches, Patching
from tvg.model.families.tiny import (
    VISION_HEADS,
    VISION_HIDDEN,
    TinyParts,
    TinySizes,
    text_config,
    token_id,
)
from tvg.types import PromptBatch

PATCH, MERGE = 14, 2  # as in every released checkpoint
TOKEN_SIDE = PATCH * MERGE  # in pixels
# Special tokens, by their names in the released tokenizers.
_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
# The released chat template: one placeholder per clip, and no default system message.
_CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}\n\
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' %}<IMG_CONTEXT>\n\
{% elif content['type'] == 'video' %}<video>\n\
{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""


class InternVL(Family):
    """InternVL3; see the module docstring."""

    model_type = "internvl"
    processor_classes = ("InternVLProcessor",)
    vision_tokens = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    trunk_prefix = "vision_tower."
    merger_prefixes = ("multi_modal_projector.",)

    def make_patching(self, video_processor: Any) -> Patching:
        return FramePatches(
            video_processor=video_processor,
            clip_config="data/clip=internvl",
            merge=MERGE,
            token_side=TOKEN_SIDE,
        )

    def clip_text(self, frame_times: str | None) -> ClipText:
        """Returns numbered frames, with times if requested."""
        return NumberedFrames(text=frame_times)

    @property
    def model_class(self) -> Any:
        from transformers import InternVLForConditionalGeneration

        return InternVLForConditionalGeneration

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
            raise ValueError(f"model.path: unsupported InternVL: expected {expected}, got {found}")

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

    def tiny(self, tokenizer: Any, sizes: TinySizes) -> TinyParts:
        from transformers import (
            GotOcr2ImageProcessor,
            InternVLConfig,
            InternVLProcessor,
            InternVLVideoProcessor,
        )

        if sizes.frame_side < 1 or sizes.frame_side % TOKEN_SIDE:
            raise ValueError(
                f"frame_side: expected a multiple of {TOKEN_SIDE} pixels, got {sizes.frame_side}"
            )
        num_tokens = (sizes.frame_side // TOKEN_SIDE) ** 2  # tokens per frame
        tokenizer = _with_own_tokens(tokenizer)
        text = text_config(tokenizer, sizes, rope={"rope_theta": 1e6})
        config = InternVLConfig(
            text_config=text | {"model_type": "qwen2"},
            vision_config={
                "num_hidden_layers": 2,
                "hidden_size": VISION_HIDDEN,
                "intermediate_size": 2 * VISION_HIDDEN,
                "num_attention_heads": VISION_HEADS,
                "attention_bias": True,
                "image_size": [sizes.frame_side] * 2,
                "initializer_range": sizes.initializer_range,
            },
            image_token_id=token_id(tokenizer, "<IMG_CONTEXT>"),
            image_seq_length=num_tokens,
            tie_word_embeddings=True,
        )
        size = {"height": sizes.frame_side, "width": sizes.frame_side}
        processor = InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(size=size),
            tokenizer=tokenizer,
            video_processor=InternVLVideoProcessor(size=size),
            image_seq_length=num_tokens,
            chat_template=_CHAT_TEMPLATE,
        )
        return TinyParts(config=config, processor=processor)


def _with_own_tokens(tokenizer: Any) -> Any:
    """Returns the tokenizer with the family's image tokens, and no chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens({"additional_special_tokens": list(_TOKENS.values())})
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=_TOKENS,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )


def _images(patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Converts patches, grouped by token, to images [T, channels, H, W]; H and W in pixels."""
    time, height, width = grid
    shape = (time, height // MERGE, width // MERGE, MERGE, MERGE, -1, PATCH, PATCH)
    pixels = patches.view(shape).permute(0, 5, 1, 3, 6, 2, 4, 7)
    return pixels.reshape(time, -1, height * PATCH, width * PATCH)


def _in_groups(states: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Reorders patch states [T, h * w, C]: the MERGE x MERGE patches of a token become adjacent."""
    time, height, width = grid
    shape = (time, height // MERGE, MERGE, width // MERGE, MERGE, -1)
    return states.reshape(shape).transpose(2, 3).flatten(0, 4)
