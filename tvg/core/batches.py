"""Joins batches of prompts and rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from tvg.types import PromptBatch, RolloutBatch


def join_prompts(parts: Sequence[PromptBatch], *, pad_id: int) -> PromptBatch:
    """Joins the prompts of all parts into one batch, padded on the left to the longest prompt.

    Args:
        parts: at least one; either all parts have pixels, or all have features.
        pad_id: value of `input_ids` where `attention_mask` is 0.
    """
    return PromptBatch(
        input_ids=_padded([part.input_ids for part in parts], pad_id, left=True),
        attention_mask=_padded([part.attention_mask for part in parts], 0, left=True),
        pixel_values_videos=_joined([part.pixel_values_videos for part in parts]),
        pixel_table=parts[0].pixel_table,
        video_features=_joined([part.video_features for part in parts]),
        video_grid_thw=torch.cat([part.video_grid_thw for part in parts]),
        sampled_fps=torch.cat([part.sampled_fps for part in parts]),
        examples=[example for part in parts for example in part.examples],
        unreadable=[problem for part in parts for problem in part.unreadable],
        duration_s=torch.cat([part.duration_s for part in parts]),
        unexpanded=[prompt for part in parts for prompt in part.unexpanded],
    )


def join_rollouts(parts: Sequence[RolloutBatch], *, pad_id: int) -> RolloutBatch:
    """Joins the groups of all parts into one rollout; completions are padded on the right.

    Args:
        parts: at least one; all have the same group size.
        pad_id: value of `completion_ids` where `completion_mask` is 0.
    """
    sizes = {part.group_size for part in parts}
    assert len(sizes) == 1, sizes
    return RolloutBatch(
        prompts=join_prompts([part.prompts for part in parts], pad_id=pad_id),
        group_size=sizes.pop(),
        completion_ids=_padded([part.completion_ids for part in parts], pad_id, left=False),
        completion_mask=_padded([part.completion_mask for part in parts], 0, left=False),
        sampler_logprobs=_padded([part.sampler_logprobs for part in parts], 0, left=False),
        texts=[text for part in parts for text in part.texts],
        is_finished=torch.cat([part.is_finished for part in parts]),
    )


def _padded(rows: Sequence[Tensor], fill: int, *, left: bool) -> Tensor:
    width = max(row.shape[1] for row in rows)
    missing = [width - row.shape[1] for row in rows]
    sides = [(gap, 0) if left else (0, gap) for gap in missing]
    return torch.cat([pad(row, side, value=fill) for row, side in zip(rows, sides, strict=True)])


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    found = [tensor for tensor in tensors if tensor is not None]
    assert len(found) in (0, len(tensors)), "pixels and features in one batch"
    return torch.cat(found) if found else None
