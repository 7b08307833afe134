"""The interface of a family of video-language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tvg.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class VideoTokens:
    """The language model's inputs for all clips of a batch: N tokens of width D."""

    embeds: Tensor  # [N, D], replaces the placeholders
    # [N, D] each; added to the states at these positions after the first layers, one per layer
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VisionSizes:
    """The sizes of a vision tower that determine its memory and its FLOPs."""

    hidden: int
    mlp: int
    mlp_products: int  # matrices of an MLP: 3 if it is gated, else 2
    layers: int
    full_layers: int  # layers that attend over whole frames instead of windows
    window: int  # side of a window, in patches; 1 if no layer has windows
    merge: int  # patches merged into one token
    mergers: int  # number of mergers
    merger_hidden: int  # width of each merger's hidden layer
    patch_values: int  # numbers per patch: channels * temporal patch * patch side squared


class Family(ABC):
    """Implements everything that differs between families; stateless.

    `model` is always an instance of `model_class`, and `config` is its config.

    Attributes:
        model_class: the transformers class that loads a checkpoint.
        vision_tokens: special tokens of vision inputs; never sampled.
    """

    model_class: Any
    vision_tokens: tuple[str, ...]

    @abstractmethod
    def prepare(self, model: Any) -> None:
        """Prepares a newly loaded model; parameters and state dict do not change.

        Raises:
            ValueError: a setting in its config is not supported.
        """

    @abstractmethod
    def tower(self, model: Any) -> nn.Module:
        """Returns the module that contains the vision trunk, and possibly the mergers."""

    @abstractmethod
    def mergers(self, model: Any) -> list[nn.Module]:
        """Returns the modules that project the trunk's features into the language model."""

    @abstractmethod
    def encode_trunk(self, model: Any, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Encodes patches to features before the mergers, in reading order: [patches, F].

        Args:
            model: the model whose trunk is run.
            pixel_values: [patches of all clips, channels * temporal patch * patch side squared].
            grid_thw: int64 [clips, 3] in patches.
        """

    @abstractmethod
    def merge(self, model: Any, features: Tensor) -> VideoTokens:
        """Merges features to tokens, each group of merge**2 neighbouring patches independently."""

    @abstractmethod
    def position_ids(self, config: Any, prompts: PromptBatch) -> Tensor:
        """Rotary positions of prompts (time, height, width), int64 [3, B, P]."""

    def language_positions(self, positions: Tensor) -> Tensor:
        """Converts positions [3, rows, tokens] to the form that the language model expects."""
        return positions

    @abstractmethod
    def is_video(self, config: Any, input_ids: Tensor) -> Tensor:
        """Mask of the video placeholders: bool, the shape of `input_ids`."""

    @abstractmethod
    def feature_width(self, vision_config: Any) -> int:
        """F, the number of features per patch that `encode_trunk` returns."""

    @abstractmethod
    def num_patches(self, vision_config: Any, num_frames: int, height: int, width: int) -> int:
        """Number of patches of a clip of `num_frames` frames; height and width in pixels."""

    @abstractmethod
    def vision_sizes(self, config: Any) -> VisionSizes:
        """Returns the vision tower's sizes."""
