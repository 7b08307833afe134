"""Tests of the objective with hand-computed values, for a policy unlike the sampler."""

import logging
import math

import pytest
import torch
from helpers.objectives import (
    ADVANTAGES,
    FINISHED,
    MASK,
    RATIOS,
    REFERENCE,
    ZEROS,
    make_objective,
    step,
)

# Row 1: min(1.5, 1.2) and 0.5. Row 2: 1.5 (not clipped, because the advantage is negative).
# Row 3: max(0.5, 0.8) = 0.8 and 1.1. Five tokens in three completions of at most four.
LOSSES = [[-1.2, -0.5], [1.5], [0.8, 1.1]]


def test_loss_and_metrics_by_hand():
    out = step()
    assert float(out.loss) == pytest.approx(sum(map(sum, LOSSES)) / 5)
    expected = {
        "clip_fraction_high": 1 / 5,
        "clip_fraction_low": 1 / 5,
        "clip_fraction": 2 / 5,
        "entropy": 2 + (1.5 + 0.5 + 1.5 + 0.5 + 1.1) / 5,
        "importance_ratio": (1.5 + 0.5 + 1.5 + 0.5 + 1.1) / 5,
    }
    assert {k: float(v) for k, v in out.metrics.items()} == pytest.approx(expected)


def test_every_reduction_by_hand():
    by_sequence = sum(sum(row) / len(row) for row in LOSSES) / 3
    assert float(step(reduction="sequence_mean").loss) == pytest.approx(by_sequence)
    of_limit = sum(map(sum, LOSSES)) / (3 * 4)
    assert float(step(reduction="max_tokens").loss) == pytest.approx(of_limit)


def test_kl_in_the_loss_by_hand():
    # The reference gives twice the probability to the second token of row 1 and that of row 2.
    k3 = 2 * (2 - math.log(2) - 1)
    out = step(kl_coef=0.1)
    assert float(out.loss - step().loss) == pytest.approx(0.1 * k3 / 5)
    assert float(out.metrics["kl"]) == pytest.approx(k3 / 5)
    k2 = 2 * math.log(2) ** 2 / 2
    assert float(step(kl_coef=0.1, kl_estimator="k2").metrics["kl"]) == pytest.approx(k2 / 5)
    assert "kl" not in step().metrics


def test_reward_kl_is_summed_and_not_in_the_loss():
    out = step(kl_coef=0.1, kl_in="reward", kl_estimator="k1")
    assert float(out.loss) == pytest.approx(float(step().loss))
    assert float(out.metrics["kl"]) == pytest.approx(-2 * math.log(2) / 5)  # still logged
    objective = make_objective(kl_coef=0.1, kl_in="reward", kl_estimator="k1")
    logprobs = torch.tensor([[-1.0, -2.0], [-1.0, -2.0]], requires_grad=True)
    reference = torch.tensor([[-1.5, -2.25], [-1.5, torch.nan]])
    penalty = objective.reward_penalty(logprobs, reference, torch.tensor([[1, 1], [1, 0]]))
    torch.testing.assert_close(penalty, 0.1 * torch.tensor([0.75, 0.5]))
    assert not penalty.requires_grad


def test_the_entropy_bonus_is_a_token_mean_for_every_reduction():
    entropy = 2 + (1.5 + 0.5 + 1.5 + 0.5 + 1.1) / 5
    for reduction in ("token_mean", "sequence_mean", "max_tokens"):
        bonus = step(reduction=reduction).loss - step(reduction=reduction, entropy_coef=0.1).loss
        assert float(bonus) == pytest.approx(0.1 * entropy)


def test_the_sampler_weight_by_hand():
    # The sampler's log-probs are -log of (1.5, 1), (3), (0.5, 1.1). With old log-probs of 0, the
    # weights are these numbers, capped at 2.
    out = step(sampler_ratio_cap=2.0)
    losses = -1.2 * 1.5 - 0.5 * 1 + 1.5 * 2 + 0.8 * 0.5 + 1.1 * 1.1
    assert float(out.loss) == pytest.approx(losses / 5)
    mean = (1.5 + 1 + 2 + 0.5 + 1.1) / 5
    assert float(out.metrics["sampler_weight"]) == pytest.approx(mean)
    # The sampler weight does not apply to the KL.
    with_kl = step(sampler_ratio_cap=2.0, kl_coef=0.1)
    kl = step(kl_coef=0.1).loss - step().loss
    assert float(with_kl.loss) == pytest.approx(losses / 5 + float(kl))


def test_the_sampler_weight_uses_the_policys_old_logprobs():
    objective = make_objective(sampler_ratio_cap=5.0)
    settings = {
        "logprobs": ZEROS.clone().requires_grad_(),
        "old_logprobs": ZEROS,
        "ref_logprobs": None,
        "sampler_logprobs": ZEROS,
        "entropy": ZEROS,
        "advantages": ADVANTAGES,
        "loss_mask": MASK,
        "denominator": objective.denominator(MASK),
        "num_tokens": MASK.sum(),
    }
    doubled = objective(policy_old_logprobs=ZEROS + math.log(2), **settings)
    assert float(doubled.metrics["sampler_weight"]) == pytest.approx(2)
    alike = objective(policy_old_logprobs=None, **settings)
    assert float(alike.metrics["sampler_weight"]) == pytest.approx(1)
    assert doubled.loss.item() == pytest.approx(2 * alike.loss.item())


def test_truncated_completions_have_no_loss_but_are_counted():
    objective = make_objective(mask_truncated=True, max_tokens=4)
    mask = objective.loss_mask(MASK, FINISHED)
    assert mask.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert make_objective().loss_mask(MASK, FINISHED) is MASK
    assert float(step(mask_truncated=True).loss) == pytest.approx((-1.7 + 1.5) / 3)
    by_sequence = step(mask_truncated=True, reduction="sequence_mean").loss
    assert float(by_sequence) == pytest.approx((-1.7 / 2 + 1.5) / 3)
    of_limit = step(mask_truncated=True, reduction="max_tokens").loss
    assert float(of_limit) == pytest.approx((-1.7 + 1.5) / 12)
    # If no completion finished, loss and gradient are exactly 0.
    logprobs = RATIOS.log().requires_grad_()
    nothing = torch.zeros_like(MASK)
    for reduction in ("token_mean", "sequence_mean", "max_tokens"):
        out = make_objective(reduction=reduction, entropy_coef=0.1, kl_coef=0.1)(
            logprobs=logprobs,
            old_logprobs=ZEROS,
            ref_logprobs=REFERENCE,
            sampler_logprobs=None,
            policy_old_logprobs=None,
            entropy=logprobs * 2,
            advantages=ADVANTAGES,
            loss_mask=nothing,
            denominator=make_objective(reduction=reduction).denominator(nothing),
            num_tokens=nothing.sum(),
        )
        assert out.loss == 0
        assert torch.autograd.grad(out.loss, [logprobs])[0].eq(0).all()


def test_entropy_has_a_gradient_only_with_a_bonus():
    entropy = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    for coef in (0.0, 0.1):
        objective = make_objective(entropy_coef=coef)
        assert objective.needs_entropy_gradient is (coef > 0)
        out = objective(
            logprobs=RATIOS.log().requires_grad_(),
            old_logprobs=ZEROS,
            ref_logprobs=None,
            sampler_logprobs=None,
            policy_old_logprobs=None,
            entropy=entropy,
            advantages=ADVANTAGES,
            loss_mask=MASK,
            denominator=objective.denominator(MASK),
            num_tokens=MASK.sum(),
        )
        assert not any(value.requires_grad for value in out.metrics.values())
        (gradient,) = torch.autograd.grad(out.loss, [entropy], allow_unused=True)
        assert (gradient is None) is (coef == 0)
    torch.testing.assert_close(gradient, -0.1 * MASK / 5, check_dtype=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip_low", -1.0),
        ("clip_low", 1.5),
        ("clip_high", -1.0),
        ("clip_high", math.nan),
        ("kl_coef", -1.0),
        ("entropy_coef", -1.0),
        ("max_tokens", 0),
        ("sampler_ratio_cap", 0.0),
        ("ratio_level", "word"),
        ("reduction", "mean"),
        ("kl_estimator", "k4"),
        ("kl_in", "prompt"),
    ],
)
def test_settings_out_of_range_name_their_key(key, value):
    with pytest.raises(ValueError, match=rf"objective\.loss\.{key}: expected .*got .?{value}"):
        make_objective(**{key: value})


def test_k1_in_the_loss_gives_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        make_objective(kl_estimator="k1")
        make_objective(kl_estimator="k1", kl_coef=0.1, kl_in="reward")
        assert not caplog.records
        make_objective(kl_estimator="k1", kl_coef=0.1)
    assert "objective.loss.kl_estimator" in caplog.text


def test_a_reference_is_needed_only_with_a_kl_penalty():
    assert make_objective(kl_coef=0.1, kl_in="reward").needs_reference
    assert not make_objective().needs_reference
