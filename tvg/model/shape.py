"""The sizes of a model that determine its memory and its FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tvg.model.adapters import adapter_ids
from tvg.model.families import family_of, mergers
from tvg.model.vision import is_trunk_frozen


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Widths and depths of a model; queries have `heads` heads of width `head_size`."""

    hidden: int  # D
    mlp: int  # F
    layers: int
    heads: int
    key_heads: int  # heads of keys and values
    head_size: int
    words: int  # V, tokens in the vocabulary
    vision_hidden: int
    vision_mlp: int
    vision_layers: int
    vision_full_layers: int  # layers that attend over full frames instead of windows
    window: int  # side of a window, in patches; 1 if no layer has windows
    merge: int  # patches merged into one token
    patch_values: int  # numbers per patch: channels * temporal patch * patch side squared
    vision_mlp_products: int = 3  # matrices of a vision MLP; 2 if it is not gated
    mergers: int = 1  # 1 + number of deepstack layers
    merger_hidden: int | None = None  # of a merger's hidden layer; None: merge * vision_hidden

    @property
    def queries(self) -> int:
        """Total width of the query heads."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Total width of the key heads, which is also the width of the values."""
        return self.key_heads * self.head_size

    @property
    def attention_params(self) -> int:
        """Number of weights in one layer's attention matrices: query, key, value, output."""
        return self.hidden * (2 * self.queries + 2 * self.keys)

    @property
    def mlp_params(self) -> int:
        """Number of weights in the three matrices of one layer's MLP."""
        return 3 * self.hidden * self.mlp

    @property
    def block_params(self) -> int:
        """Number of weights in the matrices of one vision block."""
        mlp = self.vision_mlp_products * self.vision_hidden * self.vision_mlp
        return 4 * self.vision_hidden**2 + mlp

    @property
    def merger_params(self) -> int:
        """Number of weights in the two matrices of a merger, summed over all mergers."""
        wide = self.merge * self.vision_hidden
        inner = self.merger_hidden or wide
        return self.mergers * (wide * inner + inner * self.hidden)


def shape_of(config: Any) -> ModelShape:
    """Returns the sizes of a model of any family, given its config."""
    text, vision = config.get_text_config(), family_of(config).vision_sizes(config)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        head_size=head_size,
        words=text.vocab_size,
        vision_hidden=vision.hidden,
        vision_mlp=vision.mlp,
        vision_mlp_products=vision.mlp_products,
        vision_layers=vision.layers,
        vision_full_layers=vision.full_layers,
        window=vision.window,
        merge=vision.merge,
        mergers=vision.mergers,
        merger_hidden=vision.merger_hidden,
        patch_values=vision.patch_values,
    )


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameter counts of a model."""

    trained: int
    frozen: int
    is_head_trained: bool
    is_trunk_trained: bool  # any part of the vision tower except the mergers
    is_merger_trained: bool
    adapters: int = 0  # included in `trained`; the reference has none

    @property
    def total(self) -> int:
        return self.trained + self.frozen


def count_parameters(model: Any) -> Parameters:
    """Returns the parameter counts of a model; a tied head counts once.

    The model may be on the meta device, without weights.
    """
    adapters = adapter_ids(model)
    # Not by their numbers of values, which are 0 on ranks that store no part of a weight.
    merging = [p.requires_grad for merger in mergers(model) for p in merger.parameters()]
    return Parameters(
        trained=_count(model, is_trained=True),
        frozen=_count(model, is_trained=False),
        is_head_trained=any(p.requires_grad for p in model.lm_head.parameters()),
        is_trunk_trained=not is_trunk_frozen(model),
        is_merger_trained=any(merging),
        adapters=sum(p.numel() for p in model.parameters() if id(p) in adapters),
    )


def _count(module: nn.Module, *, is_trained: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad is is_trained)
