"""A policy objective with Time-R1's settings, for tests that change some of them."""

from __future__ import annotations

from typing import Any

from tvg.core.surrogate import clipped
from tvg.objective.policy_gradient import PolicyObjective


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
