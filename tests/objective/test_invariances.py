"""Tests of changes that must not change a step's loss, and of gradients by finite differences."""

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

from tvg.core.advantage import group_advantages
from tvg.core.surrogate import cispo

EVERYTHING = {
    "kl_coef": 0.1,
    "entropy_coef": 0.1,
    "sampler_ratio_cap": 2.0,
    "mask_truncated": True,
}
VARIANTS = [
    {},
    {"reduction": "sequence_mean", "kl_coef": 0.1},
    {"reduction": "max_tokens", "entropy_coef": 0.1},
    {"ratio_level": "sequence", "reduction": "sequence_mean"},
    {"surrogate": cispo, "clip_low": 1.0},
    EVERYTHING,
    {**EVERYTHING, "surrogate": cispo, "ratio_level": "sequence", "reduction": "max_tokens"},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_micro_batches_sum_to_the_steps_loss_and_metrics(variant):
    def gradient(parts):
        logprobs = RATIOS.log().requires_grad_()
        outs = [step(part, logprobs=logprobs, **variant) for part in parts]
        sum(out.loss for out in outs).backward()
        return outs, logprobs.grad

    (whole,), expected = gradient([slice(0, 3)])
    for parts in ([slice(0, 1), slice(1, 3)], [slice(n, n + 1) for n in range(3)]):
        outs, found = gradient(parts)
        total = sum(o.loss.item() for o in outs)
        assert whole.loss.item() == pytest.approx(total, rel=1e-12)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
        for name, value in whole.metrics.items():
            total = sum(float(o.metrics[name]) for o in outs)
            assert float(value) == pytest.approx(total), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_duplicating_all_completions_keeps_loss_and_gradient(variant):
    objective = make_objective(**{"max_tokens": 4, **variant})
    settings = {
        "logprobs": RATIOS.log(),
        "old_logprobs": ZEROS,
        "ref_logprobs": REFERENCE if objective.needs_reference else None,
        "sampler_logprobs": -REFERENCE,
        "entropy": RATIOS,
        "advantages": ADVANTAGES,
        "loss_mask": objective.loss_mask(MASK, FINISHED),
    }

    def loss_of(given):
        mask = given["loss_mask"]
        whole = {"denominator": objective.denominator(mask), "num_tokens": mask.sum()}
        return objective(policy_old_logprobs=None, **given, **whole).loss

    twice = {k: None if v is None else torch.cat([v, v]) for k, v in settings.items()}
    torch.testing.assert_close(loss_of(twice), loss_of(settings), rtol=1e-12, atol=0)


def test_reward_shifts_and_group_order_keep_the_loss():
    generator = torch.Generator().manual_seed(0)
    logprobs, old = -torch.rand(2, 8, 5, generator=generator, dtype=torch.float64)
    rewards = torch.rand(8, generator=generator, dtype=torch.float64)
    objective = make_objective(reduction="sequence_mean")
    mask = torch.ones(8, 5)

    def loss_of(rewards, order):
        advantages = group_advantages(
            rewards[order], group_size=4, baseline="group_mean", scale="group_std", eps=1e-4
        )
        return objective(
            logprobs=logprobs[order],
            old_logprobs=old[order],
            ref_logprobs=None,
            sampler_logprobs=None,
            policy_old_logprobs=None,
            entropy=old,
            advantages=advantages,
            loss_mask=mask,
            denominator=objective.denominator(mask),
            num_tokens=mask.sum(),
        ).loss

    as_sampled = torch.arange(8)
    expected = loss_of(rewards, as_sampled)
    shifted = rewards + torch.tensor([3.0, -1.0]).repeat_interleave(4)
    torch.testing.assert_close(loss_of(shifted, as_sampled), expected, rtol=0, atol=1e-12)
    permuted = torch.tensor([2, 0, 3, 1, 7, 6, 4, 5])
    torch.testing.assert_close(loss_of(rewards, permuted), expected, rtol=0, atol=1e-12)
    mixed = torch.tensor([4, 0, 3, 1, 7, 6, 2, 5])  # mixing groups changes the loss
    assert (loss_of(rewards, mixed) - expected).abs() > 1e-3


@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "max_tokens"])
def test_gradients_equal_finite_differences(ratio_level, reduction):
    generator = torch.Generator().manual_seed(2)
    moved = 0.4 * torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    logits = moved[0].clone().requires_grad_()

    def loss(values):
        objective = make_objective(
            ratio_level=ratio_level,
            reduction=reduction,
            kl_coef=0.1,
            entropy_coef=0.1,
            sampler_ratio_cap=2.0,
        )
        return objective(
            logprobs=torch.nn.functional.logsigmoid(values),
            old_logprobs=torch.nn.functional.logsigmoid(moved[1]),
            ref_logprobs=REFERENCE - 1,
            sampler_logprobs=-REFERENCE,
            policy_old_logprobs=None,
            entropy=torch.sigmoid(values).square(),
            advantages=ADVANTAGES,
            loss_mask=MASK,
            denominator=objective.denominator(MASK),
            num_tokens=MASK.sum(),
        ).loss

    torch.autograd.gradcheck(loss, [logits], eps=1e-6, atol=1e-8)
