"""Advantages of completions within the group of their prompt."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

AdvantageScale = Literal["group_std", "none"]


def group_advantages(
    rewards: Tensor, *, group_size: int, scale: AdvantageScale = "group_std", eps: float = 1e-4
) -> Tensor:
    """Reward minus the mean of its group, by default over the group's standard deviation.

    `(r - mean) / (std + eps)` with the unbiased std (denominator group_size - 1) is GRPO as
    released in Time-R1; `scale="none"` leaves the division out (Dr. GRPO, arXiv 2503.20783).
    A group of equal rewards gets exactly 0.

    Args:
        rewards: [N] totals; row n belongs to prompt n // group_size.
        group_size: completions a prompt, at least 2.
        scale: what to divide by.
        eps: added to the std.

    Returns:
        [N], in the type of `rewards`.

    Raises:
        ValueError: if the group size does not fit, or the scale is unknown.
    """
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2 to compare completions: got {group_size}")
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            "group_size must divide the rollouts: "
            f"got rewards of shape {tuple(rewards.shape)}, group_size={group_size}"
        )
    if scale not in get_args(AdvantageScale):
        raise ValueError(f"scale must be one of {get_args(AdvantageScale)}: got {scale!r}")
    # In float64 the mean of equal float32 rewards is exact; in float32 its rounding error divided
    # by eps would be a (tiny) advantage.
    groups = rewards.to(torch.float64).view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale == "group_std":
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)
    return advantages.view(-1).to(rewards.dtype)
