"""Interface of a family of video-language models."""

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
    """Inputs of the language model for all clips of a batch: N tokens of width D."""

    embeds: Tensor  # [N, D], replaces the embeddings of the placeholders
    # [N, D] each; tensor i is added to the hidden states of these tokens after decoder layer i
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VisionSizes:
    """The sizes of a vision tower that determine its memory and its FLOPs."""

    hidden: int
    mlp: int
    mlp_products: int  # matrices of an MLP: 3 if it is gated, otherwise 2
    layers: int
    full_layers: int  # layers that attend over full frames instead of windows
    window: int  # side of a window, in patches; 1 if no layer has windows
    merge: int  # number of patches that are merged into one token
    mergers: int  # number of mergers
    merger_hidden: int  # width of each merger's hidden layer
    patch_values: int  # numbers per patch: channels * temporal patch * patch side squared


class Family(ABC):
    """Implements everything that differs between families; stateless.

    `model` is always an instance of `model_class`, and `config` is its config. A family's file
    imports transformers only inside methods, because data workers import these files, too.

    Attributes:
        model_type: the `model_type` of the family's configs.
        processor_classes: names of the transformers classes of the family's processors.
        vision_tokens: special tokens of vision inputs; never sampled.
        trunk_prefix: marks the tower's tensors in a checkpoint, e.g. "visual." in
            "model.visual.blocks.0.norm1.weight".
        merger_prefixes: mark the mergers' tensors in the same way.
    """

    model_type: str
    processor_classes: tuple[str, ...]
    vision_tokens: tuple[str, ...]
    trunk_prefix: str
    merger_prefixes: tuple[str, ...]

    # -- prompts and clips ----------------------------------------------------------------------

    def check_processor(self, processor: Any) -> None:
        """Checks that a processor belongs to this family.

        Raises:
            ValueError: it belongs to another family; the message names found and expected classes.
        """
        found = type(processor).__name__
        if found not in self.processor_classes:
            raise ValueError(
                f"the processor of a model of type {self.model_type!r}: expected "
                f"{' or '.join(self.processor_classes)}, got {found}"
            )

    def patching(self, processor: Any) -> Patching:
        """Returns the object that cuts clips into normalised patches.

        Raises:
            ValueError: the processor belongs to another family.
        """
        self.check_processor(processor)
        return self.make_patching(processor.video_processor)

    @abstractmethod
    def make_patching(self, video_processor: Any) -> Patching:
        """Returns the object that cuts clips, given the checkpoint's video processor."""

    @abstractmethod
    def clip_text(self, frame_times: str | None) -> ClipText:
        """Returns the object that writes the text of a clip in a prompt.

        Args:
            frame_times: `prompt.frame_times`; None selects the format of the family's releases.
        """

    # -- the model ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def model_class(self) -> Any:
        """Transformers class that loads a checkpoint."""

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
        """Encodes patches to features before the mergers, in the patches' order: [patches, F].

        Args:
            model: the model whose trunk is run.
            pixel_values: [patches of all clips, channels * temporal patch * patch side squared].
            grid_thw: int64 [clips, 3] in patches.
        """

    @abstractmethod
    def merge(self, model: Any, features: Tensor) -> VideoTokens:
        """Merges features to tokens.

        Each square of `VisionSizes.merge` neighbouring patches (for example 4, as 2 x 2) becomes
        one token, independently of the other squares.
        """

    @abstractmethod
    def position_ids(self, config: Any, prompts: PromptBatch) -> Tensor:
        """Returns rotary positions of prompts (time, height, width), int64 [3, B, P]."""

    def language_positions(self, positions: Tensor) -> Tensor:
        """Converts positions [3, rows, tokens] to the form that the language model expects."""
        return positions

    @abstractmethod
    def is_video(self, config: Any, input_ids: Tensor) -> Tensor:
        """Returns a mask of the video placeholders: bool, with the shape of `input_ids`."""

    @abstractmethod
    def feature_width(self, vision_config: Any) -> int:
        """Returns F, the number of features per patch in the output of `encode_trunk`."""

    @abstractmethod
    def num_patches(self, vision_config: Any, num_frames: int, height: int, width: int) -> int:
        """Returns the number of patches of a clip; height and width are in pixels."""

    @abstractmethod
    def vision_sizes(self, config: Any) -> VisionSizes:
        """Returns the vision tower's sizes."""

    # -- tiny checkpoints -----------------------------------------------------------------------

    @abstractmethod
    def tiny(self, tokenizer: Any, sizes: TinySizes) -> TinyParts:
        """Returns the config and processor of a tiny model; see `tvg.synthetic.tiny`.

        Args:
            tokenizer: contains Qwen's special tokens; the family may add more.
            sizes: sizes of the language model; the family chooses the sizes of the vision tower.
        """
