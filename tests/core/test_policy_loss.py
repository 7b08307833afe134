"""Surrogate, KL and reductions against hand-computed numbers; micro-batches against one batch."""

import math

import pytest
import torch
from torch import Tensor

from tvg.core.policy_loss import (
    Reduction,
    clip_fractions,
    clipped_surrogate,
    kl_k3,
    reduce_tokens,
    reduction_denominator,
)

REDUCTIONS: list[Reduction] = ["token_mean", "sequence_mean"]


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_clipped_surrogate_by_hand() -> None:
    # Ratios 0.5, 1.0, 1.5 with clip [0.8, 1.3], once with advantage 2, once with -2.
    old = logs([0.4, 0.4, 0.4], [0.4, 0.4, 0.4])
    new = logs([0.2, 0.4, 0.6], [0.2, 0.4, 0.6])
    advantages = torch.tensor([2.0, -2.0], dtype=torch.float64)
    loss, ratio = clipped_surrogate(new, old, advantages, clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(ratio, torch.tensor([[0.5, 1.0, 1.5]] * 2).double())
    expected = torch.tensor([[-1.0, -2.0, -2.6], [1.6, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(loss, expected)


def test_the_gradient_stops_where_the_clip_acts() -> None:
    old = logs([0.4, 0.4, 0.4], [0.4, 0.4, 0.4])
    new = logs([0.2, 0.4, 0.6], [0.2, 0.4, 0.6]).requires_grad_()
    old.requires_grad_()
    advantages = torch.tensor([2.0, -2.0], dtype=torch.float64)
    loss, ratio = clipped_surrogate(new, old, advantages, clip_low=0.2, clip_high=0.3)
    loss.sum().backward()
    # d loss / d new = -ratio * A where it acts.
    expected = torch.tensor([[-1.0, -2.0, 0.0], [0.0, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(new.grad, expected)
    assert old.grad is None
    assert not ratio.requires_grad


def test_one_update_per_rollout_has_ratio_one_and_nothing_clipped() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(6, 5, generator=generator).requires_grad_()
    advantages = torch.randn(6, generator=generator)
    loss, ratio = clipped_surrogate(
        logprobs, logprobs.detach(), advantages, clip_low=0.2, clip_high=0.2
    )
    assert ratio.eq(1).all()
    torch.testing.assert_close(loss, -advantages[:, None].expand(6, 5))
    fractions = clip_fractions(ratio, advantages, torch.ones(6, 5), 0.2, 0.2)
    assert fractions.low == 0
    assert fractions.high == 0
    loss.sum().backward()  # the policy gradient: -A for every token
    torch.testing.assert_close(logprobs.grad, -advantages[:, None].expand(6, 5))


def test_clip_fractions_by_hand() -> None:
    ratio = torch.tensor([[0.5, 1.0, 1.5, 1.5], [0.5, 0.5, 1.5, 1.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    # Row 1 (A > 0) is clipped at its two high ratios, row 2 (A < 0) at its two low ones; 7 tokens.
    fractions = clip_fractions(ratio, torch.tensor([1.0, -1.0]), mask, 0.2, 0.3)
    assert fractions.low.item() == pytest.approx(2 / 7)
    assert fractions.high.item() == pytest.approx(2 / 7)
    fractions = clip_fractions(ratio, torch.tensor([1.0, 0.0]), mask, 0.2, 0.3, denominator=14)
    assert fractions.low.item() == 0
    assert fractions.high.item() == pytest.approx(2 / 14)
    # At the bound itself nothing is clipped yet.
    at_bound = clip_fractions(torch.tensor([[1.5]]), torch.ones(1), torch.ones(1, 1), 0.5, 0.5)
    assert at_bound.high == 0


def test_kl_k3_by_hand() -> None:
    policy = logs([0.5, 0.5, 0.25]).requires_grad_()
    reference = logs([0.5, 0.25, 0.5]).requires_grad_()
    kl = kl_k3(policy, reference)
    # ref / pol = 1, 1/2, 2: x - ln x - 1.
    expected = torch.tensor([[0.0, 0.5 + math.log(2) - 1, 2 - math.log(2) - 1]]).double()
    torch.testing.assert_close(kl, expected, rtol=0, atol=1e-7)
    kl.sum().backward()
    torch.testing.assert_close(policy.grad, torch.tensor([[0.0, 0.5, -1.0]]).double())
    assert reference.grad is None


def test_kl_k3_is_never_negative_even_for_tiny_differences() -> None:
    policy = torch.full((1, 4), -1.0)
    reference = policy + torch.tensor([1e-4, -1e-4, 3e-5, 1e-3])
    kl = kl_k3(policy, reference)
    assert kl.ge(0).all()
    log_ratio = (reference - policy).double()
    torch.testing.assert_close(kl.double(), log_ratio**2 / 2, rtol=5e-2, atol=1e-12)


def test_kl_k3_is_unbiased() -> None:
    policy, reference = logs([0.5, 0.3, 0.2]), logs([0.2, 0.2, 0.6])
    expected = (policy.exp() * (policy - reference)).sum()
    mean = (policy.exp() * kl_k3(policy, reference)).sum()
    torch.testing.assert_close(mean, expected)


VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, math.nan], [8.0, math.inf, math.nan]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])


def test_reductions_by_hand() -> None:
    # Token mean: (6 + 10 + 8) / 6. Sequence mean: (2 + 5 + 8) / 3.
    for reduction, expected in (("token_mean", 4.0), ("sequence_mean", 5.0)):
        denominator = reduction_denominator(MASK, reduction)
        value = reduce_tokens(VALUES, MASK, reduction=reduction, denominator=denominator)
        assert value.item() == pytest.approx(expected)
        assert value.dtype == torch.float32
    assert reduction_denominator(MASK, "token_mean") == 6
    assert reduction_denominator(MASK, "sequence_mean") == 3
    halved = reduce_tokens(VALUES, MASK, reduction="token_mean", denominator=12.0)
    assert halved.item() == pytest.approx(2.0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_completion_without_tokens_adds_nothing(reduction: Reduction) -> None:
    nothing = torch.zeros_like(MASK)
    denominator = reduction_denominator(nothing, reduction)
    assert reduce_tokens(VALUES, nothing, reduction=reduction, denominator=denominator) == 0


def test_an_unknown_reduction_is_named() -> None:
    with pytest.raises(ValueError, match="'mean'"):
        reduction_denominator(MASK, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mean'"):
        reduce_tokens(VALUES, MASK, reduction="mean", denominator=1)  # type: ignore[arg-type]


def _loss_gradient(
    theta: Tensor, rows: list[slice], reduction: Reduction, whole: dict[str, Tensor]
) -> Tensor:
    """Gradient of surrogate + 0.1 KL, accumulated over the given micro-batches."""
    theta = theta.clone().requires_grad_()
    denominator = reduction_denominator(whole["mask"], reduction)
    for part in rows:
        logprobs = torch.log_softmax(whole["inputs"][part] @ theta, dim=-1)[..., 0]
        surrogate, _ = clipped_surrogate(
            logprobs, whole["old"][part], whole["advantages"][part], clip_low=0.2, clip_high=0.3
        )
        per_token = surrogate + 0.1 * kl_k3(logprobs, whole["ref"][part])
        mask = whole["mask"][part]
        reduce_tokens(per_token, mask, reduction=reduction, denominator=denominator).backward()
    assert theta.grad is not None
    return theta.grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_micro_batched_gradients_equal_those_of_the_full_batch(reduction: Reduction) -> None:
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
