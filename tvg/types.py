"""Defines the data classes that the pipeline passes along, from annotation file to loss.

Letters in shapes: B prompts, G completions per prompt (group size), N = B * G completions,
P prompt tokens (left-padded), C completion tokens (right-padded), T frames, V vocabulary.
Times are seconds from the start of the clip (or of its window, if only a part of the file is used).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor


class Segment(NamedTuple):
    """A moment [start_s, end_s] in seconds."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


class LeadIn(NamedTuple):
    """Filler frames inserted before a clip, which shift its events to later times."""

    length_s: float  # rounded to whole frames of the file when the clip is loaded
    kind: Literal["blank", "noise", "freeze"]  # black, random pixels, the clip's first frame
    seed: int  # seed of the random pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundingExample:
    """One query on one video, as read from an annotation file (or from a user's request)."""

    qid: str
    video: str  # id or relative path from the annotation file
    video_path: Path | None  # the video file; None if only annotations are read
    query: str
    segment: Segment | None  # ground truth, relative to the window's start; None if unknown
    duration_s: float | None  # annotated length of the clip (of the window, if there is one)
    window: Segment | None = None  # the part of the file to show, in seconds of the file
    difficulty: float | None = None  # 100 * IoU of a model's earlier prediction; high = easy
    prediction: Segment | None = None  # that prediction
    hint: Segment | None = None  # coarse label for supervised training; None: use `segment`
    lead_in: LeadIn | None = None  # already included in `segment` and `duration_s`
    raw_query: str | None = None  # query with surrounding whitespace; None: it has no whitespace
    # other fields of the annotation, under their original names: source, query type, pass rate ...
    extra: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VideoClip:
    """Sampled and resized frames of one clip."""

    frames: Tensor  # uint8 [T, 3, H, W], H and W multiples of patch * merge
    sampled_fps: float  # actual frames per second; may differ from the requested rate
    frame_times_s: Tensor  # float64 [T], when each frame appears, relative to the window's start
    duration_s: float  # length of the clip, read from the file


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """Features of a clip from the frozen vision trunk, used instead of its frames."""

    features: Tensor  # bfloat16 [patches, vision hidden size], before the merger
    grid_thw: Tensor  # int64 [3] in patches
    sampled_fps: float
    frame_times_s: Tensor  # float64 [T], when each frame appears, relative to the window's start
    duration_s: float


class _Batch:
    """Base class with `to`, which moves every tensor field (also of nested batches) to a device."""

    def to(self, device: torch.device | str) -> Self:
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)  # type: ignore[arg-type]
            if isinstance(getattr(self, f.name), Tensor | _Batch)
        }
        return replace(self, **moved)  # type: ignore[type-var]


def normalised(patches: Tensor, table: Tensor) -> Tensor:
    """Replaces each byte by its normalised value.

    Args:
        patches: uint8 [patches, channels * values per channel].
        table: float32 [channels, 256].

    Returns:
        float32, with the shape of `patches`.
    """
    channels = patches.unflatten(1, (len(table), -1)).unbind(1)
    found = [
        values.index_select(0, channel.flatten().int()).view_as(channel)
        for channel, values in zip(channels, table, strict=True)
    ]
    return torch.stack(found, dim=1).flatten(1)


@dataclass(frozen=True, kw_only=True)
class UnexpandedPrompt:
    """A prompt for rollout engines that process clips themselves, such as vLLM."""

    token_ids: list[int]  # with one marker for the clip instead of its expanded placeholders
    frames: Tensor  # uint8 [T, 3, H, W], sampled and resized, on the CPU
    frame_times_s: Tensor  # float64 [T], when each frame appears, from the clip's start
    sampled_fps: float


@dataclass(frozen=True, kw_only=True)
class PromptBatch(_Batch):
    """B tokenised prompts with their clips, ready for a rollout or a forward pass."""

    input_ids: Tensor  # int64 [B, P], left-padded; video placeholders expanded
    attention_mask: Tensor  # int64 [B, P]
    # float [patches of all clips, channels * temporal_patch * patch**2]; uint8 if pixel_table is
    # set, until the batch is moved to its device; None: see video_features
    pixel_values_videos: Tensor | None
    pixel_table: Tensor | None = None  # float32 [channels, 256]: normalised value of each byte
    # float [patches of all clips, vision hidden size], from the frozen trunk, before the merger
    video_features: Tensor | None = None
    video_grid_thw: Tensor  # int64 [clips, 3] in patches, before the spatial merge
    sampled_fps: Tensor  # float64 [clips]: actual sampling rate; used for the position ids
    examples: list[GroundingExample] = field(default_factory=list)  # length B
    unreadable: list[str] = field(default_factory=list)  # clips left out or replaced, and why
    duration_s: Tensor  # float64 [B], lengths of the clips, read from the files
    # length B if the rollout engine needs them, otherwise empty
    unexpanded: list[UnexpandedPrompt] = field(default_factory=list)

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """Moves every tensor to a device; patches of bytes are normalised there."""
        moved = super().to(device)
        if moved.pixel_table is None or moved.pixel_values_videos is None:
            return moved
        pixels = normalised(moved.pixel_values_videos, moved.pixel_table)
        return replace(moved, pixel_values_videos=pixels, pixel_table=None)

    def rows(self, start: int, stop: int) -> PromptBatch:
        """Returns the prompts [start, stop) with their clips; requires one clip per prompt."""
        assert self.video_grid_thw.shape[0] == len(self), "expected one clip per prompt"
        ends = self.video_grid_thw.prod(-1).cumsum(0).tolist()
        patches = slice([0, *ends][start], [0, *ends][min(stop, len(self))])
        pixels, features = self.pixel_values_videos, self.video_features
        return PromptBatch(
            input_ids=self.input_ids[start:stop],
            attention_mask=self.attention_mask[start:stop],
            pixel_values_videos=None if pixels is None else pixels[patches],
            pixel_table=self.pixel_table,
            video_features=None if features is None else features[patches],
            video_grid_thw=self.video_grid_thw[start:stop],
            sampled_fps=self.sampled_fps[start:stop],
            examples=self.examples[start:stop],
            duration_s=self.duration_s[start:stop],
            unexpanded=self.unexpanded[start:stop],
        )

    def repeat(self, num: int) -> PromptBatch:
        """Repeats every prompt `num` times in a row, each time with a copy of its clip."""
        rows = [self.rows(index, index + 1) for index in range(len(self)) for _ in range(num)]

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(row, name) for row in rows])

        return PromptBatch(
            input_ids=joined("input_ids"),
            attention_mask=joined("attention_mask"),
            pixel_values_videos=None
            if self.pixel_values_videos is None
            else joined("pixel_values_videos"),
            pixel_table=self.pixel_table,
            video_features=None if self.video_features is None else joined("video_features"),
            video_grid_thw=joined("video_grid_thw"),
            sampled_fps=joined("sampled_fps"),
            examples=[example for row in rows for example in row.examples],
            duration_s=joined("duration_s"),
            unexpanded=[prompt for row in rows for prompt in row.unexpanded],
        )


@dataclass(frozen=True, kw_only=True)
class RolloutBatch(_Batch):
    """G sampled completions for each of B prompts; row n belongs to prompt n // G."""

    prompts: PromptBatch
    group_size: int
    completion_ids: Tensor  # int64 [N, C], right-padded
    completion_mask: Tensor  # int64 [N, C]: 1 up to and including the first EOS
    # float32 [N, C], log-probs of the sampler before top_p and top_k; 0 where masked
    sampler_logprobs: Tensor
    texts: list[str] = field(default_factory=list)  # length N, special tokens removed
    is_finished: Tensor  # bool [N]: ended by EOS, not truncated at the length limit

    def rows_of(self, prompts: range, completions: range) -> Tensor:
        """Returns the row numbers of completions: int64 [len(prompts), len(completions)]."""
        numbers = torch.arange(len(self.prompts) * self.group_size).view(-1, self.group_size)
        return numbers[prompts.start : prompts.stop, completions.start : completions.stop]

    def select(self, prompts: range, completions: range) -> RolloutBatch:
        """Returns a range of prompts with a range of completions from each group."""
        rows = self.rows_of(prompts, completions).flatten()
        places = rows.to(self.completion_ids.device)
        return RolloutBatch(
            prompts=self.prompts.rows(prompts.start, prompts.stop),
            group_size=len(completions),
            completion_ids=self.completion_ids[places],
            completion_mask=self.completion_mask[places],
            sampler_logprobs=self.sampler_logprobs[places],
            texts=[self.texts[row] for row in rows.tolist()] if self.texts else [],
            is_finished=self.is_finished[places],
        )


@dataclass(frozen=True, kw_only=True)
class RewardOutput:
    """The weighted total, and the raw value of each reward, which is logged as its own column."""

    total: Tensor  # float32 [N]
    components: dict[str, Tensor]  # name -> float32 [N], before weighting


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """A scalar to differentiate and detached scalars to log."""

    loss: Tensor
    metrics: dict[str, Tensor]
