"""Tests that losses, gradients, advantages and metrics equal those of TRL's GRPOTrainer."""

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from helpers.objectives import make_objective
from helpers.trl_oracle import Batch, run

from tvg.core.advantage import group_advantages
from tvg.core.surrogate import cispo
from tvg.types import LossOutput

GROUP_SIZE, MAX_TOKENS = 4, 7
LENGTHS = [7, 1, 3, 7, 2, 5, 7, 4, 6, 7, 1, 2]
TOLERANCE = {"rtol": 0, "atol": 1e-12}  # all in float64
IN_FLOAT32 = {"rtol": 0, "atol": 1e-6}  # TRL corrects its standard deviation in float32


def make_batch(*, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    shape = (len(LENGTHS), MAX_TOKENS)
    mask = (torch.arange(MAX_TOKENS) < torch.tensor(LENGTHS)[:, None]).long()
    logprobs = (-noise(1.0).abs() - 0.1) * mask
    return Batch(
        mask=mask,
        is_finished=torch.tensor(LENGTHS) < MAX_TOKENS,
        rewards=torch.rand(shape[0], generator=generator, dtype=torch.float64),
        group_size=GROUP_SIZE,
        logprobs=logprobs.requires_grad_(),
        old_logprobs=(logprobs.detach() + noise(0.3)) * mask,
        ref_logprobs=(logprobs.detach() + noise(0.5)) * mask,
        sampler_logprobs=((logprobs.detach() + noise(0.8)) * mask).float().double(),
        entropy=noise(1.0).abs().requires_grad_(),
    )


def ours(batch: Batch, advantages: torch.Tensor, **changes: Any) -> LossOutput:
    objective = make_objective(**{"max_tokens": 16, **changes})
    loss_mask = objective.loss_mask(batch.mask, batch.is_finished)
    return objective(
        logprobs=batch.logprobs,
        old_logprobs=batch.old_logprobs,
        ref_logprobs=batch.ref_logprobs if objective.needs_reference else None,
        sampler_logprobs=batch.sampler_logprobs,
        policy_old_logprobs=None,
        entropy=batch.entropy,
        advantages=advantages,
        loss_mask=loss_mask,
        denominator=objective.denominator(loss_mask),
        num_tokens=loss_mask.sum(),
    )


# TRL's settings and ours. For cispo, TRL's epsilon_high is the largest weight itself.
LOSS_TYPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({}, {"reduction": "sequence_mean"}),
    "bnpo": ({}, {"reduction": "token_mean"}),
    "dr_grpo": ({}, {"reduction": "max_tokens"}),
    "dapo": ({"epsilon_high": 0.28}, {"reduction": "token_mean", "clip_high": 0.28}),
    "cispo": (
        {"epsilon_high": 1.2},
        {"reduction": "token_mean", "surrogate": cispo, "clip_low": 1.0, "clip_high": 0.2},
    ),
}
LEVELS = ["token", "sequence"]
CAP = {"use_vllm": True, "vllm_importance_sampling_clip_max": 1.5}
EXTRAS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "kl": ({"beta": 0.04}, {"kl_coef": 0.04}),
    "entropy": ({"entropy_coef": 0.01}, {"entropy_coef": 0.01}),
    "truncated": ({"mask_truncated_completions": True}, {"mask_truncated": True}),
    "cap": (CAP, {"sampler_ratio_cap": 1.5}),
    "narrow": (
        {"epsilon_low": 3e-4, "epsilon_high": 4e-4},
        {"clip_low": 3e-4, "clip_high": 4e-4},
    ),
    "all": (
        {"beta": 0.04, "entropy_coef": 0.01, "mask_truncated_completions": True, **CAP},
        {
            "kl_coef": 0.04,
            "entropy_coef": 0.01,
            "mask_truncated": True,
            "sampler_ratio_cap": 1.5,
        },
    ),
}


@pytest.mark.parametrize(
    ("loss_type", "level", "extra"),
    [
        case
        for case in product(LOSS_TYPES, LEVELS, EXTRAS)
        if (case[0], case[2]) != ("cispo", "narrow")  # cispo's bounds have another meaning
    ],
)
def test_loss_and_gradients_equal_trl(loss_type: str, level: str, extra: str) -> None:
    batch = make_batch()
    theirs, mine = LOSS_TYPES[loss_type]
    more_theirs, more_mine = EXTRAS[extra]
    expected = run(
        batch,
        loss_type=loss_type,
        importance_sampling_level=level,
        **{**theirs, **more_theirs},
    )
    found = ours(batch, expected.advantages, ratio_level=level, **{**mine, **more_mine})
    torch.testing.assert_close(found.loss, expected.loss, **TOLERANCE)
    leaves = [batch.logprobs, batch.entropy]
    gradients = torch.autograd.grad(found.loss, leaves, allow_unused=True)
    wanted = torch.autograd.grad(expected.loss, leaves, allow_unused=True)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert (gradient is None) == (want is None)
        if gradient is not None and want is not None:
            torch.testing.assert_close(gradient, want, **TOLERANCE)
    assert found.loss.abs() > 1e-3


@pytest.mark.parametrize("extra", ["kl", "truncated", "narrow"])
def test_metrics_equal_trl(extra: str) -> None:
    batch = make_batch()
    theirs, mine = EXTRAS[extra]
    expected = run(batch, **theirs)
    found = ours(batch, expected.advantages, reduction="sequence_mean", **mine).metrics
    names = {
        "entropy": "entropy",
        "clip_fraction_low": "clip_ratio/low_mean",
        "clip_fraction_high": "clip_ratio/high_mean",
        "clip_fraction": "clip_ratio/region_mean",
    }
    if extra == "kl":
        names["kl"] = "kl"
    for our, their in names.items():
        assert float(found[our]) == pytest.approx(expected.metrics[their], abs=1e-6), our
        assert found[our] > 0, our


SCALES = {"group": "group_std", "batch": "batch_std", "none": "none"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("seed", range(3))
def test_advantages_equal_trl(scale: str, seed: int) -> None:
    batch = make_batch(seed=seed)
    flat = batch.rewards.clone()
    flat[:GROUP_SIZE] = 0.5  # one group with equal rewards
    for rewards in (batch.rewards, flat):
        expected = run(replace(batch, rewards=rewards), scale_rewards=scale).advantages
        found = group_advantages(
            rewards,
            group_size=GROUP_SIZE,
            baseline="group_mean",
            scale=SCALES[scale],  # type: ignore[arg-type]
            eps=1e-4,
        )
        torch.testing.assert_close(found, expected, **IN_FLOAT32)


def test_every_setting_changes_trls_loss() -> None:
    """Each setting in the table above changes TRL's loss, so none is ignored."""
    batch = make_batch()
    losses = {
        (loss_type, level, extra): float(
            run(
                batch,
                loss_type=loss_type,
                importance_sampling_level=level,
                **{**theirs, **EXTRAS[extra][0]},
            ).loss.detach()
        )
        for loss_type, (theirs, _) in LOSS_TYPES.items()
        for level in LEVELS
        for extra in EXTRAS
        if not (extra == "narrow" and loss_type in ("cispo", "dapo"))  # dapo then equals bnpo
    }
    values = sorted(losses.values())
    assert min(b - a for a, b in pairwise(values)) > 1e-8, losses
