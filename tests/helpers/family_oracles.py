"""Reference results of each model family, computed with transformers' processors and models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers.tiny_policy import Parts
from torch import Tensor
from transformers.video_utils import VideoMetadata

from tvg.synthetic.tiny import write_tiny_checkpoint
from tvg.types import PromptBatch


@dataclass(frozen=True)
class Oracle:
    """Reference for a family with Qwen2-VL's conventions; subclasses override the differences.

    Attributes:
        family: the model type.
        side: pixels per side of a token.
        is_released: whether transformers' positions equal those of the released code everywhere.
            Otherwise they are equal only up to the end of the clip.
        is_square: whether all frames have one size.
    """

    family: str
    side: int
    is_released: bool
    is_square: bool = False

    def write(self, folder: Path, **sizes: Any) -> Path:
        """Writes a tiny checkpoint of the family."""
        return write_tiny_checkpoint(folder, family=self.family, frame_side=56, **sizes)

    def texts(self, parts: Parts, text: str) -> str:
        """Returns the text that the processor expects, from the chat template's text."""
        return text

    def inputs(self, parts: Parts, index: int) -> dict[str, Any]:
        """Returns the processor's outputs for an example with its true frame times."""
        sample, processor = parts.dataset[index], parts.processor
        messages = parts.task.messages(sample.example)
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        times_ms = (sample.clip.frame_times_s * 1000).round().long().tolist()
        inputs = processor(
            text=[self.texts(parts, text)],
            videos=[sample.clip.frames],
            video_metadata=[VideoMetadata(total_num_frames=1, fps=1e3, frames_indices=times_ms)],
            do_sample_frames=False,
            do_resize=False,
            return_tensors="pt",
        )
        return dict(inputs)

    def vision(self, pixels: Tensor, grid: Tensor) -> dict[str, Tensor]:
        """Returns the model's keyword arguments for clips, from their patches."""
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}

    def tower(self, plain: Any, pixels: Tensor, grid: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the vision tokens of clips, and the tokens added in deeper layers."""
        found = plain.model.get_video_features(pixels, grid)
        deepstack = [torch.cat(list(x)) for x in getattr(found, "deepstack_features", [])]
        return torch.cat(list(found.pooler_output)), deepstack

    def positions(self, plain: Any, inputs: dict[str, Any], one: PromptBatch) -> Tensor:
        """Returns transformers' positions of one prompt."""
        del one
        given = {name: x for name, x in inputs.items() if not name.startswith("pixel")}
        found, _ = plain.model.get_rope_index(**given)
        return found

    def given_positions(self, ours: Tensor) -> dict[str, Tensor]:
        """Returns arguments that pass positions [3, 1, T] to the forward or `generate`."""
        return {"position_ids": ours}


class SecondsOracle(Oracle):
    """Reference for Qwen2.5-VL, whose positions depend on a clip's sampled frame rate."""

    def positions(self, plain, inputs, one):
        rates = {"second_per_grid_ts": (2 / one.sampled_fps).tolist()}
        return super().positions(plain, {**inputs, **rates}, one)


class TimedOracle(Oracle):
    """Reference for Qwen3-VL, whose processor replaces the clip's placeholder by timed steps."""

    def texts(self, parts, text):
        return text.replace(parts.collator.clip_text.mark, "<|video_pad|>")


class ImagesOracle(Oracle):
    """Reference for InternVL: frames are images, and positions are those of text."""

    def vision(self, pixels, grid):
        return {"pixel_values": torch.cat(list(self.images(pixels, grid)))}

    def images(self, pixels, grid):
        """Yields each clip's frames [T, 3, H, W], put together from its patches."""
        patches = iter(pixels.view(-1, 3, 14, 14))
        for time, height, width in grid.tolist():
            images = torch.empty(time, 3, height * 14, width * 14)
            for t in range(time):
                for row in range(0, height, 2):
                    for column in range(0, width, 2):
                        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                            top, left = (row + y) * 14, (column + x) * 14
                            images[t, :, top : top + 14, left : left + 14] = next(patches)
            yield images

    def tower(self, plain, pixels, grid):
        found = [
            plain.model.get_image_features(pixel_values=images).pooler_output.flatten(0, 1)
            for images in self.images(pixels, grid)
        ]
        return torch.cat(found), []

    def positions(self, plain, inputs, one):
        return torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)

    def given_positions(self, ours):
        return {"position_ids": ours[0]}


ORACLES: dict[str, Oracle] = {
    oracle.family: oracle
    for oracle in (
        Oracle("qwen2_vl", 28, is_released=False),
        SecondsOracle("qwen2_5_vl", 28, is_released=False),
        TimedOracle("qwen3_vl", 32, is_released=True),
        ImagesOracle("internvl", 28, is_released=True, is_square=True),
    )
}
