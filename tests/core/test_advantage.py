"""Tests of group advantages with hand-computed numbers."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from tvg.core.advantage import group_advantages

SCALES = ["group_std", "batch_std", "none"]
BASELINES = ["group_mean", "leave_one_out"]


def advantages_of(
    rewards: Tensor,
    *,
    group_size: int,
    baseline: str = "group_mean",
    scale: str = "group_std",
    eps: float = 1e-4,
) -> Tensor:
    """Returns advantages, with Time-R1's settings by default."""
    return group_advantages(rewards, group_size=group_size, baseline=baseline, scale=scale, eps=eps)


def test_group_advantages_by_hand() -> None:
    # Group 1: mean 2, unbiased std sqrt((1 + 0 + 1) / 2) = 1. Group 2: mean 4, std sqrt(12).
    rewards = torch.tensor([1.0, 2.0, 3.0, 2.0, 2.0, 8.0])
    expected = torch.tensor([-1.0, 0.0, 1.0, -2.0, -2.0, 4.0])
    scaled = advantages_of(rewards, group_size=3, eps=0.0)
    torch.testing.assert_close(scaled, expected / torch.tensor([1.0] * 3 + [math.sqrt(12)] * 3))
    unscaled = advantages_of(rewards, group_size=3, scale="none")
    torch.testing.assert_close(unscaled, expected, rtol=0, atol=0)


def test_leave_one_out_by_hand() -> None:
    # Means of the other rewards: 2.5, 2, 1.5 and 5, 5, 2.
    rewards = torch.tensor([1.0, 2.0, 3.0, 2.0, 2.0, 8.0])
    expected = torch.tensor([-1.5, 0.0, 1.5, -3.0, -3.0, 6.0])
    unscaled = advantages_of(rewards, group_size=3, baseline="leave_one_out", scale="none")
    torch.testing.assert_close(unscaled, expected)
    # With either baseline, the scale is the std of the rewards.
    scaled = advantages_of(rewards, group_size=3, baseline="leave_one_out", eps=0.0)
    torch.testing.assert_close(scaled, expected / torch.tensor([1.0] * 3 + [math.sqrt(12)] * 3))


def test_batch_std_by_hand() -> None:
    # All six rewards: mean 3, variance (4 + 1 + 0 + 1 + 1 + 25) / 5.
    rewards = torch.tensor([1.0, 2.0, 3.0, 2.0, 2.0, 8.0])
    expected = torch.tensor([-1.0, 0.0, 1.0, -2.0, -2.0, 4.0]) / (math.sqrt(32 / 5) + 0.5)
    scaled = advantages_of(rewards, group_size=3, scale="batch_std", eps=0.5)
    torch.testing.assert_close(scaled, expected)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
def test_order_within_a_group_and_common_shift_do_not_matter(baseline: str, scale: str) -> None:
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1, 7, 6, 4, 5, 8, 10, 9, 11])
    settings = {"group_size": 4, "baseline": baseline, "scale": scale}
    found = advantages_of(rewards[order], **settings)
    expected = advantages_of(rewards, **settings)[order]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    shifted = advantages_of(rewards + 5, **settings)
    torch.testing.assert_close(shifted[order], expected, rtol=0, atol=1e-12)


def test_eps_is_added_to_the_std() -> None:
    advantages = advantages_of(torch.tensor([0.0, 1.0]), group_size=2, eps=0.5)
    std = math.sqrt(0.5)  # unbiased: (0.25 + 0.25) / 1
    torch.testing.assert_close(advantages, torch.tensor([-0.5, 0.5]) / (std + 0.5))


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1.7, 1e4])
@pytest.mark.parametrize("group_size", [3, 7, 8])
def test_equal_rewards_give_zero_advantages(reward: float, group_size: int) -> None:
    flat = torch.full((group_size,), reward)
    rewards = torch.cat([flat, torch.arange(group_size) / 7, flat])
    for dtype, baseline, scale, eps in product(
        [torch.float32, torch.float64], BASELINES, SCALES, [1e-4, 0.0]
    ):
        advantages = advantages_of(
            rewards.to(dtype), group_size=group_size, baseline=baseline, scale=scale, eps=eps
        ).view(3, -1)
        assert advantages.dtype == dtype
        assert advantages[[0, 2]].eq(0).all()
        assert advantages.isfinite().all()
        assert advantages[1, [0, -1]].ne(0).all()
    alone = advantages_of(flat, group_size=group_size, scale="batch_std", eps=0.0)
    assert alone.eq(0).all()


def test_advantages_ignore_shift_scale_and_other_groups() -> None:
    rewards = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantages = advantages_of(rewards, group_size=8)
    groups = advantages.view(-1, 8)
    torch.testing.assert_close(groups.mean(dim=1), torch.zeros(5).double(), rtol=0, atol=1e-12)
    # A constant added to a group's rewards changes nothing. With eps=0, a factor changes nothing.
    shift = torch.arange(5).double().repeat_interleave(8)
    shifted = advantages_of(rewards + shift, group_size=8)
    torch.testing.assert_close(shifted, advantages, rtol=0, atol=1e-12)
    scaled = advantages_of(3 * rewards, group_size=8, eps=0.0)
    torch.testing.assert_close(
        scaled, advantages_of(rewards, group_size=8, eps=0.0), rtol=0, atol=1e-12
    )
    # Each group's advantages are independent of the other groups.
    alone = torch.cat([advantages_of(part, group_size=8) for part in rewards.split(8)])
    torch.testing.assert_close(alone, advantages, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("num_rewards", "group_size", "scale", "named"),
    [
        (10, 4, "group_std", "group_size=4"),
        (4, 1, "group_std", "group_size"),
        (4, 0, "none", "group_size"),
        (4, 2, "std", r"objective\.advantage\.scale.*'std'"),
    ],
)
def test_invalid_group_size_or_scale_is_named(
    num_rewards: int, group_size: int, scale: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        advantages_of(torch.zeros(num_rewards), group_size=group_size, scale=scale)


def test_invalid_baseline_or_eps_is_named() -> None:
    with pytest.raises(ValueError, match=r"objective\.advantage\.baseline.*'mean'"):
        advantages_of(torch.zeros(4), group_size=2, baseline="mean")
    with pytest.raises(ValueError, match=r"objective\.advantage\.eps.*-1"):
        advantages_of(torch.zeros(4), group_size=2, eps=-1.0)
