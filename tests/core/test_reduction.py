"""Tests of loss reductions with hand-computed numbers and with micro-batches."""

import math

import pytest
import torch
from torch import Tensor

from tvg.core.kl import k3
from tvg.core.ratio import token_log_ratio
from tvg.core.reduction import (
    Reduction,
    mean_group_lengths,
    reduce_tokens,
    reduction_denominator,
    token_mean,
)
from tvg.core.surrogate import clipped

REDUCTIONS: list[Reduction] = ["token_mean", "sequence_mean", "max_tokens"]
VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, math.nan], [8.0, math.inf, math.nan]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])


def test_reductions_by_hand() -> None:
    # token_mean: (6 + 10 + 8) / 6. sequence_mean: (2 + 5 + 8) / 3. max_tokens=4: 24 / (3 * 4).
    for reduction, count, expected in (
        ("token_mean", 6, 4.0),
        ("sequence_mean", 3, 5.0),
        ("max_tokens", 12, 2.0),
    ):
        denominator = reduction_denominator(MASK, reduction, max_tokens=4)
        assert denominator == count
        assert denominator.dtype == torch.int64
        value = reduce_tokens(VALUES, MASK, reduction=reduction, denominator=denominator)
        assert value.item() == pytest.approx(expected)
        assert value.dtype == torch.float32
    halved = reduce_tokens(VALUES, MASK, reduction="token_mean", denominator=12.0)
    assert halved.item() == pytest.approx(2.0)


def test_group_token_mean_by_hand() -> None:
    # Two groups of two: (1 + 2 + 3 + 4 + 6) / 5 and (8 + 2) / 2. Both have the same weight.
    values = torch.cat([VALUES, torch.tensor([[2.0, math.nan, math.nan]])])
    mask = torch.cat([MASK, MASK[2:]])
    lengths = mean_group_lengths(mask, group_size=2)
    assert lengths.tolist() == [2.5, 2.5, 1.0, 1.0]
    reduction: Reduction = "group_token_mean"
    denominator = reduction_denominator(mask, reduction)
    assert denominator == 4
    whole = reduce_tokens(
        values, mask, reduction=reduction, denominator=denominator, group_lengths=lengths
    )
    assert whole.item() == pytest.approx((16 / 5 + 5) / 2)
    # A micro-batch with a part of a group uses the mean length of the complete group.
    parts = [
        reduce_tokens(
            values[rows],
            mask[rows],
            reduction=reduction,
            denominator=denominator,
            group_lengths=lengths[rows],
        )
        for rows in ([0, 2], [1], [3])
    ]
    assert sum(parts).item() == pytest.approx(whole.item())
    nothing = reduce_tokens(
        values,
        mask * 0,
        reduction=reduction,
        denominator=denominator,
        group_lengths=mean_group_lengths(mask * 0, group_size=2),
    )
    assert nothing == 0


def test_token_mean_has_no_gradient() -> None:
    values = torch.ones(3, 3, requires_grad=True)
    assert not token_mean(values, MASK, 6).requires_grad
    assert token_mean(values, MASK, 12) == 0.5


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_completion_adds_no_loss_but_counts_in_completion_means(reduction: Reduction) -> None:
    nothing = torch.zeros_like(MASK)
    denominator = reduction_denominator(nothing, reduction, max_tokens=4)
    assert reduce_tokens(VALUES, nothing, reduction=reduction, denominator=denominator) == 0
    # An empty completion counts in the denominators of sequence_mean and max_tokens, as a
    # completion with tokens does.
    with_it = torch.cat([MASK, MASK[:1] * 0])
    more = reduction_denominator(with_it, reduction, max_tokens=4)
    assert more == {"token_mean": 6, "sequence_mean": 4, "max_tokens": 16}[reduction]


def test_unknown_reduction_is_named() -> None:
    with pytest.raises(ValueError, match="'mean'"):
        reduction_denominator(MASK, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mean'"):
        reduce_tokens(VALUES, MASK, reduction="mean", denominator=1)  # type: ignore[arg-type]


def _loss_gradient(
    theta: Tensor, rows: list[slice], reduction: Reduction, whole: dict[str, Tensor]
) -> Tensor:
    """Returns the gradient of surrogate + 0.1 KL, accumulated over micro-batches."""
    theta = theta.clone().requires_grad_()
    denominator = reduction_denominator(whole["mask"], reduction, max_tokens=9)
    for part in rows:
        logprobs = torch.log_softmax(whole["inputs"][part] @ theta, dim=-1)[..., 0]
        mask = whole["mask"][part]
        log_ratio = token_log_ratio(logprobs, whole["old"][part], mask)
        advantages = whole["advantages"][part]
        surrogate = clipped(log_ratio, logprobs, advantages, clip_low=0.2, clip_high=0.3)
        per_token = surrogate + 0.1 * k3(logprobs, whole["ref"][part])
        reduce_tokens(per_token, mask, reduction=reduction, denominator=denominator).backward()
    assert theta.grad is not None
    return theta.grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_micro_batched_gradients_equal_full_batch_gradients(reduction: Reduction) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 6, 4, generator=generator, dtype=torch.float64)
    theta = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 8, 6, generator=generator, dtype=torch.float64) * 0.3
    logprobs = torch.log_softmax(inputs @ theta, dim=-1)[..., 0]
    lengths = torch.tensor([6, 1, 3, 2, 5, 4, 1, 6])
    whole = {
        "inputs": inputs,
        "old": logprobs + noise[0],
        "ref": logprobs + noise[1],
        "advantages": torch.randn(8, generator=generator, dtype=torch.float64),
        "mask": (torch.arange(6) < lengths[:, None]).long(),
    }
    full = _loss_gradient(theta, [slice(0, 8)], reduction, whole)
    uneven = [slice(0, 1), slice(1, 4), slice(4, 8)]
    assert full.abs().max() > 1e-3
    for parts in (uneven, [slice(n, n + 1) for n in range(8)]):
        micro = _loss_gradient(theta, parts, reduction, whole)
        torch.testing.assert_close(micro, full, rtol=0, atol=1e-12)
