"""The sizes of a Qwen2.5-VL model that its memory and its arithmetic follow from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Widths and depths; a head is `head_size` wide, and queries have `heads` of them."""

    hidden: int  # D
    mlp: int  # F
    layers: int
    heads: int
    key_heads: int  # of keys and values
    head_size: int
    words: int  # V
    vision_hidden: int
    vision_mlp: int
    vision_layers: int
    vision_full_layers: int  # those that attend over whole frames, not windows
    window: int  # side of a window, in patches
    merge: int  # patches that become one token
    patch_values: int  # numbers of one patch: channels * temporal patch * patch side squared

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads together; values have the same."""
        return self.key_heads * self.head_size

    @property
    def attention_params(self) -> int:
        """Weights of the matrix products of one layer's attention: query, key, value, output."""
        return self.hidden * (2 * self.queries + 2 * self.keys)

    @property
    def mlp_params(self) -> int:
        """Weights of the three matrix products of one layer's MLP."""
        return 3 * self.hidden * self.mlp

    @property
    def block_params(self) -> int:
        """Weights of the matrix products of one vision block."""
        return 4 * self.vision_hidden**2 + 3 * self.vision_hidden * self.vision_mlp

    @property
    def merger_params(self) -> int:
        """Weights of the merger's two matrix products."""
        wide = self.merge * self.vision_hidden
        return wide * wide + wide * self.hidden


def shape_of(config: Any) -> ModelShape:
    """Reads a `Qwen2_5_VLConfig`."""
    text, vision = config.text_config, config.vision_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        head_size=head_size,
        words=text.vocab_size,
        vision_hidden=vision.hidden_size,
        vision_mlp=vision.intermediate_size,
        vision_layers=vision.depth,
        vision_full_layers=len(set(vision.fullatt_block_indexes) & set(range(vision.depth))),
        # As transformers rounds it: whole merged tokens.
        window=vision.window_size
        // vision.spatial_merge_size
        // vision.patch_size
        * vision.spatial_merge_size,
        merge=vision.spatial_merge_size**2,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
    )


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many numbers a model holds."""

    trained: int
    frozen: int
    is_head_trained: bool
    is_trunk_trained: bool  # anything of the vision tower but its merger
    is_merger_trained: bool

    @property
    def total(self) -> int:
        return self.trained + self.frozen


def count_parameters(model: Any) -> Parameters:
    """Counts the parameters of a Qwen2.5-VL model; a tied head counts once.

    A model on the meta device, which holds no weights, will do.
    """
    tower = model.model.visual
    return Parameters(
        trained=_count(model, is_trained=True),
        frozen=_count(model, is_trained=False),
        is_head_trained=model.lm_head.weight.requires_grad,
        is_trunk_trained=_count(tower, is_trained=True) > _count(tower.merger, is_trained=True),
        is_merger_trained=_count(tower.merger, is_trained=True) > 0,
    )


def _count(module: nn.Module, *, is_trained: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad is is_trained)
