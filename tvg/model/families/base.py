"""The interface of a family of video-language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tvg.model.families.clip_text import ClipText
from tvg.model.families.patching import Patching
from tvg.model.families.tiny import TinyParts, TinySizes
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

    `model` is always an instance of `model_class`, and `config` is its config. A family's file
    imports transformers only inside methods, because data workers import it, too.

    Attributes:
        model_type: the `model_type` of the family's configs.
        processor_classes: names of the transformers classes of its processors.
        vision_tokens: special tokens of vision inputs; never sampled.
        trunk_prefix: precedes the tower's part of a tensor name in a checkpoint.
        merger_prefixes: the same for the mergers.
    """

    model_type: str
    processor_classes: tuple[str, ...]
    vision_tokens: tuple[str, ...]
    trunk_prefix: str
    merger_prefixes: tuple[str, ...]

    # -- prompts and clips ----------------------------------------------------------------------

    def check_processor(self, processor: Any) -> None:
        """Refuses the processor of another family.

        Raises:
            ValueError: names the class found and those expected.
        """
        found = type(processor).__name__
        if found not in self.processor_classes:
            raise ValueError(
                f"the processor of a model of type {self.model_type!r}: expected "
                f"{' or '.join(self.processor_classes)}, got {found}"
            )

    def patching(self, processor: Any) -> Patching:
        """Returns what cuts clips into normalised patches.

        Raises:
            ValueError: the processor is of another family.
        """
        self.check_processor(processor)
        return self.make_patching(processor.video_processor)

    @abstractmethod
    def make_patching(self, video_processor: Any) -> Patching:
        """Returns what cuts clips into patches, given the checkpoint's video processor."""

    @abstractmethod
    def clip_text(self, frame_times: str | None) -> ClipText:
        """Returns what writes the text of a clip in a prompt.

        Args:
            frame_times: `prompt.frame_times`; None selects the family's own format.
        """

    # -- the model ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def model_class(self) -> Any:
        """The transformers class that loads a checkpoint."""

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

    # -- tiny checkpoints -----------------------------------------------------------------------

    @abstractmethod
    def tiny(self, tokenizer: Any, sizes: TinySizes) -> TinyParts:
        """Returns config and processor of a tiny model; see `tvg.synthetic.tiny`.

        Args:
            tokenizer: has Qwen's special tokens; a family may add its own.
            sizes: sizes of the language model; the family chooses those of its vision tower.
        """
