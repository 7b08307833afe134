"""Group advantages against numbers worked out by hand."""

import math

import pytest
import torch

from tvg.core.advantage import group_advantages


def test_by_hand() -> None:
    # Group 1: mean 2, unbiased std sqrt((1 + 0 + 1) / 2) = 1. Group 2: mean 4, std sqrt(12).
    rewards = torch.tensor([1.0, 2.0, 3.0, 2.0, 2.0, 8.0])
    expected = torch.tensor([-1.0, 0.0, 1.0, -2.0, -2.0, 4.0])
    scaled = group_advantages(rewards, group_size=3, eps=0.0)
    torch.testing.assert_close(scaled, expected / torch.tensor([1.0] * 3 + [math.sqrt(12)] * 3))
    unscaled = group_advantages(rewards, group_size=3, scale="none")
    torch.testing.assert_close(unscaled, expected, rtol=0, atol=0)


def test_eps_is_added_to_the_std() -> None:
    advantages = group_advantages(torch.tensor([0.0, 1.0]), group_size=2, eps=0.5)
    std = math.sqrt(0.5)  # unbiased: (0.25 + 0.25) / 1
    torch.testing.assert_close(advantages, torch.tensor([-0.5, 0.5]) / (std + 0.5))


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1.7, 1e4])
@pytest.mark.parametrize("group_size", [3, 7, 8])
def test_equal_rewards_give_exactly_nothing(reward: float, group_size: int) -> None:
    advantages = group_advantages(torch.full((2 * group_size,), reward), group_size=group_size)
    assert advantages.dtype == torch.float32
    assert advantages.eq(0).all()


def test_invariances() -> None:
    rewards = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantages = group_advantages(rewards, group_size=8)
    groups = advantages.view(-1, 8)
    torch.testing.assert_close(groups.mean(dim=1), torch.zeros(5).double(), rtol=0, atol=1e-12)
    # A constant added to the rewards of a prompt changes nothing; a scale changes only eps' share.
    shift = torch.arange(5).double().repeat_interleave(8)
    shifted = group_advantages(rewards + shift, group_size=8)
    torch.testing.assert_close(shifted, advantages, rtol=0, atol=1e-12)
    scaled = group_advantages(3 * rewards, group_size=8, eps=0.0)
    torch.testing.assert_close(
        scaled, group_advantages(rewards, group_size=8, eps=0.0), rtol=0, atol=1e-12
    )
    # Groups do not see one another.
    alone = torch.cat([group_advantages(part, group_size=8) for part in rewards.split(8)])
    torch.testing.assert_close(alone, advantages, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("num_rewards", "group_size", "scale", "named"),
    [
        (10, 4, "group_std", "group_size=4"),
        (4, 1, "group_std", "group_size"),
        (4, 0, "none", "group_size"),
        (4, 2, "std", "'std'"),
    ],
)
def test_what_does_not_fit_is_named(
    num_rewards: int, group_size: int, scale: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        group_advantages(torch.zeros(num_rewards), group_size=group_size, scale=scale)
