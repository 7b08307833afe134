"""GRPO's objective where the policy has moved away from the sampler, so that clipping acts."""

import math

import pytest
import torch

from tvg.objective.grpo import GRPOObjective

RATIOS = torch.tensor([[1.5, 0.5], [1.5, 1.0], [0.5, 1.1]], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
MASK = torch.tensor([[1, 1], [1, 0], [1, 1]])


def step(rows=slice(None), reduction="token_mean"):
    objective = GRPOObjective(clip_low=0.2, clip_high=0.2, kl_coef=0.0, reduction=reduction)
    zeros = torch.zeros(3, 2, dtype=torch.float64)
    return objective(
        logprobs=RATIOS.log()[rows],
        old_logprobs=zeros[rows],
        ref_logprobs=None,
        entropy=zeros[rows] + 2.0,
        advantages=ADVANTAGES[rows],
        completion_mask=MASK[rows],
        denominator=objective.denominator(MASK),
        num_tokens=MASK.sum(),
    )


def test_loss_and_clip_fractions_by_hand():
    # Row 1: min(1.5, 1.2) and 0.5. Row 2: 1.5 (a bad token made likelier is not clipped).
    # Row 3: max(0.5, 0.8) = 0.8 and 1.1. Five tokens.
    out = step()
    assert float(out.loss) == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8 + 1.1) / 5)
    assert float(out.metrics["clip_fraction_high"]) == pytest.approx(1 / 5)
    assert float(out.metrics["clip_fraction_low"]) == pytest.approx(1 / 5)
    assert float(out.metrics["clip_fraction"]) == pytest.approx(2 / 5)
    assert float(out.metrics["entropy"]) == pytest.approx(2.0)
    by_sequence = step(reduction="sequence_mean")
    assert float(by_sequence.loss) == pytest.approx(((-1.7 / 2) + 1.5 + 1.9 / 2) / 3)


def test_parts_of_a_step_add_up_in_loss_and_in_every_metric():
    whole, parts = step(), [step(slice(0, 1)), step(slice(1, 3))]
    assert math.isclose(float(whole.loss), sum(float(p.loss) for p in parts), rel_tol=1e-12)
    for name, value in whole.metrics.items():
        assert float(value) == pytest.approx(sum(float(p.metrics[name]) for p in parts)), name


@pytest.mark.parametrize("key", ["clip_low", "clip_high", "kl_coef"])
def test_settings_out_of_range_name_their_key(key):
    settings = {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0, "reduction": "token_mean"}
    with pytest.raises(ValueError, match=rf"objective\.loss\.{key}.*-1"):
        GRPOObjective(**{**settings, key: -1.0})
