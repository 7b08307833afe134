"""Builds a policy objective with the settings of grpo_token_mean and computes its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvg.core.surrogate import clipped
from tvg.objective.policy_gradient import PolicyObjective
from tvg.types import LossOutput


def make_objective(**changes: Any) -> PolicyObjective:
    settings: dict[str, Any] = {
        "surrogate": clipped,
        "ratio_level": "token",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "reduction": "token_mean",
        "max_tokens": 16,
        "kl_coef": 0.0,
        "kl_estimator": "k3",
        "kl_in": "loss",
        "entropy_coef": 0.0,
        "sampler_ratio_cap": None,
        "mask_truncated": False,
    }
    assert changes.keys() <= settings.keys(), changes
    return PolicyObjective(**{**settings, **changes})


RATIOS = torch.tensor([[1.5, 0.5], [1.5, 1.0], [0.5, 1.1]], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
MASK = torch.tensor([[1, 1], [1, 0], [1, 1]])
FINISHED = torch.tensor([True, True, False])
ZEROS = torch.zeros(3, 2, dtype=torch.float64)
REFERENCE = torch.tensor([[1.5, 1.0], [3.0, 7.0], [0.5, 1.1]], dtype=torch.float64).log()


def step(
    rows: slice = slice(None), *, logprobs: Tensor | None = None, **changes: Any
) -> LossOutput:
    """Returns the loss of `rows` of a batch of three completions with at most two tokens."""
    objective = make_objective(**{"max_tokens": 4, **changes})
    mask = objective.loss_mask(MASK, FINISHED)
    return objective(
        logprobs=(RATIOS.log() if logprobs is None else logprobs)[rows],
        old_logprobs=ZEROS[rows],
        ref_logprobs=REFERENCE[rows] if objective.needs_reference else None,
        sampler_logprobs=-REFERENCE[rows],
        policy_old_logprobs=None,
        entropy=RATIOS[rows] + 2,
        advantages=ADVANTAGES[rows],
        loss_mask=mask[rows],
        denominator=objective.denominator(mask),
        num_tokens=mask.sum(),
    )
