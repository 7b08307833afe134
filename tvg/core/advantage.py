"""Group-relative advantages of completions."""

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
    """Returns each reward minus a baseline of its group, divided by a scale.

    Baselines:

    - "group_mean": the mean of the group (GRPO, arXiv 2402.03300).
    - "leave_one_out": the mean of the other completions (RLOO, arXiv 2402.14740). The difference
      is group_size / (group_size - 1) times that of "group_mean".

    Scales:

    - "group_std": the group's standard deviation plus eps (as released in Time-R1).
    - "batch_std": the standard deviation of all given rewards plus eps (arXiv 2508.08221).
    - "none": no division (Dr. GRPO, arXiv 2503.20783).

    Standard deviations are unbiased (denominator count - 1). They are computed from the rewards,
    not from the differences. If all rewards of a group are equal, its advantages are exactly 0.

    Args:
        rewards: [N] totals, finite; row n belongs to prompt n // group_size. For "batch_std", pass
            the rewards of all ranks; otherwise each rank divides by its own standard deviation.
        group_size: completions per prompt, at least 2.
        baseline: the baseline to subtract.
        scale: the scale to divide by.
        eps: added to the standard deviation, at least 0.

    Returns:
        [N], in the dtype of `rewards`.

    Raises:
        ValueError: if the group size is below 2 or does not divide the rewards, or if a setting is
            unknown or out of range.
    """
    _check(rewards, group_size=group_size, baseline=baseline, scale=scale, eps=eps)
    # Float64 keeps the rounding error of the mean small, also if the rewards are float32.
    groups = rewards.to(torch.float64).view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if baseline == "leave_one_out":  # r - (sum - r) / (G - 1) = (r - mean) * G / (G - 1)
        advantages = advantages * (group_size / (group_size - 1))
    if scale == "group_std":
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)
    elif scale == "batch_std":
        advantages = advantages / (groups.std() + eps)
    # If all rewards of a group are equal, rounding of their mean would give a tiny advantage, and
    # eps = 0 would give 0/0.
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
