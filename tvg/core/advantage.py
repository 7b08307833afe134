"""Advantages of completions within the group of their prompt."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

AdvantageBaseline = Literal["group_mean", "leave_one_out"]
AdvantageScale = Literal["group_std", "batch_std", "none"]


def group_advantages(
    rewards: Tensor,
    *,
    group_size: int,
    baseline: AdvantageBaseline,
    scale: AdvantageScale,
    eps: float,
) -> Tensor:
    """Reward minus a baseline from its own group, divided by a scale.

    Baselines: "group_mean" (GRPO, arXiv 2402.03300) or "leave_one_out", the mean of the others
    (RLOO, arXiv 2402.14740), which is group_size / (group_size - 1) times as far away. Scales:
    "group_std" divides by the group's standard deviation plus eps (as released in Time-R1),
    "batch_std" by that of all rewards handed in plus eps (arXiv 2508.08221), "none" by nothing
    (Dr. GRPO, arXiv 2503.20783). Standard deviations are unbiased (denominator count - 1), of the
    rewards themselves. A group of equal rewards gets exactly 0.

    Args:
        rewards: [N] totals, finite; row n belongs to prompt n // group_size. For "batch_std" those
            of all ranks, else a rank divides by its own spread.
        group_size: completions a prompt, at least 2.
        baseline: what to subtract.
        scale: what to divide by.
        eps: added to the standard deviation, at least 0.

    Returns:
        [N], in the type of `rewards`.

    Raises:
        ValueError: if the group size does not fit, or a setting is unknown or out of range.
    """
    _check(rewards, group_size=group_size, baseline=baseline, scale=scale, eps=eps)
    # In float64 the mean of equal float32 rewards is exact; in float32 its rounding error divided
    # by eps would be a (tiny) advantage.
    groups = rewards.to(torch.float64).view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if baseline == "leave_one_out":  # r - (sum - r) / (G - 1) = (r - mean) * G / (G - 1)
        advantages = advantages * (group_size / (group_size - 1))
    if scale == "group_std":
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)
    elif scale == "batch_std":
        advantages = advantages / (groups.std() + eps)
    # Exactly 0 where float64 rewards are equal but their mean is rounded, and for eps = 0 (0 / 0).
    is_equal = (groups == groups[:, :1]).all(dim=1, keepdim=True)
    return advantages.masked_fill(is_equal, 0).view(-1).to(rewards.dtype)


def _check(rewards: Tensor, *, group_size: int, baseline: str, scale: str, eps: float) -> None:
    if group_size < 2:
        raise ValueError(
            f"objective.group_size: expected at least 2 to compare completions, got {group_size}"
        )
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            "objective.group_size must divide the rollouts: "
            f"got rewards of shape {tuple(rewards.shape)}, group_size={group_size}"
        )
    for key, got, known in (
        ("baseline", baseline, get_args(AdvantageBaseline)),
        ("scale", scale, get_args(AdvantageScale)),
    ):
        if got not in known:
            raise ValueError(
                f"objective.advantage.{key}: expected one of {', '.join(known)}, got {got!r}"
            )
    if not eps >= 0:
        raise ValueError(f"objective.advantage.eps: expected at least 0, got {eps}")
