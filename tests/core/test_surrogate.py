"""Tests of surrogates and importance ratios with hand-computed numbers and gradients."""

import pytest
import torch
from torch import Tensor

from tvg.core.ratio import sequence_log_ratio, token_log_ratio, truncated_weight
from tvg.core.surrogate import cispo, clip_fractions, clipped

ADVANTAGES = torch.tensor([2.0, -2.0], dtype=torch.float64)
EVERY = torch.ones(2, 3, dtype=torch.int64)


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def moved() -> tuple[Tensor, Tensor]:
    """Returns log-probs of policy and old policy with ratios 0.5, 1.0, 1.5 in both rows."""
    old = logs([0.4, 0.4, 0.4], [0.4, 0.4, 0.4]).requires_grad_()
    return logs([0.2, 0.4, 0.6], [0.2, 0.4, 0.6]).requires_grad_(), old


def test_clipped_by_hand() -> None:
    # Clip range [0.8, 1.3]; advantages 2 and -2.
    new, old = moved()
    log_ratio = token_log_ratio(new, old, EVERY)
    torch.testing.assert_close(log_ratio.exp(), torch.tensor([[0.5, 1.0, 1.5]] * 2).double())
    loss = clipped(log_ratio, new, ADVANTAGES, clip_low=0.2, clip_high=0.3)
    expected = torch.tensor([[-1.0, -2.0, -2.6], [1.6, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    # d loss / d new = -ratio * A; zero where the clip applies.
    expected = torch.tensor([[-1.0, -2.0, 0.0], [0.0, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(new.grad, expected)
    assert old.grad is None


def test_cispo_by_hand() -> None:
    # The loss is -weight * A * logprob with weights 0.8, 1.0, 1.3; the gradient is -weight * A.
    new, old = moved()
    loss = cispo(token_log_ratio(new, old, EVERY), new, ADVANTAGES, clip_low=0.2, clip_high=0.3)
    expected = torch.tensor([[-1.6, -2.0, -2.6], [1.6, 2.0, 2.6]], dtype=torch.float64)
    torch.testing.assert_close(loss, expected * new.detach())
    loss.sum().backward()
    torch.testing.assert_close(new.grad, expected)  # no token loses its gradient
    unbounded = cispo(
        token_log_ratio(new, old, EVERY), new, ADVANTAGES, clip_low=1.0, clip_high=4.0
    )
    plain = -torch.tensor([[0.5, 1.0, 1.5]] * 2) * ADVANTAGES[:, None] * new
    torch.testing.assert_close(unbounded, plain)


@pytest.mark.parametrize("surrogate", [clipped, cispo])
def test_first_update_is_the_policy_gradient(surrogate) -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(6, 5, generator=generator).requires_grad_()
    advantages = torch.randn(6, generator=generator)
    mask = torch.ones(6, 5)
    for level in (token_log_ratio, sequence_log_ratio):
        logprobs.grad = None
        log_ratio = level(logprobs, logprobs.detach(), mask)
        assert log_ratio.eq(0).all()
        surrogate(log_ratio, logprobs, advantages, clip_low=0.2, clip_high=0.2).sum().backward()
        torch.testing.assert_close(logprobs.grad, -advantages[:, None].expand(6, 5))
    fractions = clip_fractions(
        log_ratio.exp(), advantages, mask, clip_low=0.2, clip_high=0.2, num_tokens=30
    )
    assert fractions == (0, 0)


def test_sequence_ratio_is_the_geometric_mean_over_tokens() -> None:
    # Row 1: (0.5 * 1 * 1.5)^(1/3). Row 2, two tokens: (0.5 * 1)^(1/2). Row 3: no token.
    new = logs([0.2, 0.4, 0.6], [0.2, 0.4, 0.6], [0.2, 0.4, 0.6]).requires_grad_()
    old = logs(*[[0.4, 0.4, 0.4]] * 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    ratio = sequence_log_ratio(new, old, mask).exp()
    expected = torch.tensor([0.75 ** (1 / 3), 0.5**0.5, 1.0]).double()[:, None].expand(3, 3)
    torch.testing.assert_close(ratio, expected, rtol=0, atol=1e-7)
    ratio[:, 0].sum().backward()
    # d ratio / d logprob = ratio / length for each token of the completion.
    share = mask * expected / torch.tensor([3.0, 2.0, 1.0])[:, None]
    torch.testing.assert_close(new.grad, share.double(), rtol=0, atol=1e-7)


def test_masked_tokens_have_no_effect_on_log_ratios() -> None:
    nan = torch.tensor([[-1.0, torch.nan], [-1.0, torch.inf]], requires_grad=True)
    mask = torch.tensor([[1, 0], [1, 0]])
    for level in (token_log_ratio, sequence_log_ratio):
        log_ratio = level(nan, torch.zeros(2, 2), mask)
        assert log_ratio[:, 0].eq(-1).all()
        assert log_ratio.isfinite().all()


def test_truncated_weight_by_hand() -> None:
    policy = logs([0.2, 0.4, 0.9]).requires_grad_()
    weight = truncated_weight(policy, logs([0.4, 0.4, 0.3]), cap=2.0)
    torch.testing.assert_close(weight, torch.tensor([[0.5, 1.0, 2.0]]).double())
    assert not weight.requires_grad


def test_clip_fractions_by_hand() -> None:
    ratio = torch.tensor([[0.5, 1.0, 1.5, 1.5], [0.5, 0.5, 1.5, 1.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    clip = {"clip_low": 0.2, "clip_high": 0.3}
    # Row 1 (A > 0): two high ratios are clipped. Row 2 (A < 0): two low ratios. 7 tokens.
    fractions = clip_fractions(ratio, torch.tensor([1.0, -1.0]), mask, **clip, num_tokens=7)
    assert fractions.low.item() == pytest.approx(2 / 7)
    assert fractions.high.item() == pytest.approx(2 / 7)
    fractions = clip_fractions(ratio, torch.tensor([1.0, 0.0]), mask, **clip, num_tokens=14)
    assert fractions.low.item() == 0
    assert fractions.high.item() == pytest.approx(2 / 14)
    # A ratio at the bound is not clipped.
    at_bound = clip_fractions(
        torch.tensor([[1.5]]),
        torch.ones(1),
        torch.ones(1, 1),
        clip_low=0.5,
        clip_high=0.5,
        num_tokens=1,
    )
    assert at_bound.high == 0


@pytest.mark.parametrize("surrogate", [clipped, cispo])
@pytest.mark.parametrize("level", [token_log_ratio, sequence_log_ratio])
def test_gradients_equal_finite_differences(surrogate, level) -> None:
    generator = torch.Generator().manual_seed(1)
    new = (torch.randn(4, 3, generator=generator, dtype=torch.float64) * 0.5).requires_grad_()
    old = new.detach() + torch.randn(4, 3, generator=generator, dtype=torch.float64) * 0.4
    advantages = torch.randn(4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    fixed = level(new, old, mask).detach()

    def loss(logprobs: Tensor) -> Tensor:
        # cispo detaches the ratio, so finite differences must not change the ratio either.
        log_ratio = level(logprobs, old, mask) if surrogate is clipped else fixed
        return surrogate(log_ratio, logprobs, advantages, clip_low=0.2, clip_high=0.3)

    torch.autograd.gradcheck(loss, [new], eps=1e-6, atol=1e-8)
