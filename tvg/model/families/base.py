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
    # [N, D] each: added to the states at those places after the first layers, one after each
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VisionSizes:
    """The sizes of a vision tower that its memory and its arithmetic follow from."""

    hidden: int
    mlp: int
    mlp_products: int  # matrices of an MLP: 3 where it is gated, else 2
    layers: int
    full_layers: int  # those that attend over whole frames, not windows
    window: int  # side of a window, in patches; 1 where no layer has windows
    merge: int  # patches that become one token
    mergers: int  # how many project patches into the language model
    merger_hidden: int  # width of the hidden layer of each
    patch_values: int  # numbers of one patch: channels * temporal patch * patch side squared


class Family(ABC):
    """The differences between families; holds no state of its own.

    `model` is always an object of `model_class`, `config` its config.

    Attributes:
        model_class: the transformers class that loads a checkpoint.
        vision_tokens: special tokens of vision inputs: never sampled.
    """

    model_class: Any
    vision_tokens: tuple[str, ...]

    @abstractmethod
    def prepare(self, model: Any) -> None:
        """Readies a model that was just loaded; parameters and state dict stay as they are.

        Raises:
            ValueError: something in its config cannot be trained here.
        """

    @abstractmethod
    def tower(self, model: Any) -> nn.Module:
        """The module that holds the vision trunk, and maybe the mergers."""

    @abstractmethod
    def mergers(self, model: Any) -> list[nn.Module]:
        """The modules that project the trunk's features into the language model."""

    @abstractmethod
    def encode_trunk(self, model: Any, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Patches into features before the mergers, in reading order: [patches, F].

        Args:
            model: whose trunk.
            pixel_values: [patches of all clips, channels * temporal patch * patch side squared].
            grid_thw: int64 [clips, 3] in patches.
        """

    @abstractmethod
    def merge(self, model: Any, features: Tensor) -> VideoTokens:
        """Features into tokens; merge**2 neighbouring patches at a time, each group for itself."""

    @abstractmethod
    def position_ids(self, config: Any, prompts: PromptBatch) -> Tensor:
        """Rotary positions of prompts (time, height, width), int64 [3, B, P]."""

    def language_positions(self, positions: Tensor) -> Tensor:
        """Positions [3, rows, tokens] as the language model takes them."""
        return positions

    @abstractmethod
    def is_video(self, config: Any, input_ids: Tensor) -> Tensor:
        """Which tokens are placeholders of video tokens: bool, the shape of `input_ids`."""

    @abstractmethod
    def feature_width(self, vision_config: Any) -> int:
        """F: how many numbers `encode_trunk` gives of a patch."""

    @abstractmethod
    def num_patches(self, vision_config: Any, num_frames: int, height: int, width: int) -> int:
        """Patches of a clip of so many frames, height and width in pixels."""

    @abstractmethod
    def vision_sizes(self, config: Any) -> VisionSizes:
        """The vision tower's sizes."""
