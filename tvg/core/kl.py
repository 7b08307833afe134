"""Per-token estimates of KL(policy || reference) from tokens sampled by the policy.

The names are from http://joschu.net/blog/kl-approx.html. With r = reference / policy:
k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r. The values of k1 and k3 are unbiased.

Used as a loss, the estimators have different expected gradients:

- k1: zero, because the gradient of k1 is the score function.
- k2: the gradient of KL(policy || reference).
- k3: the gradient of KL(reference || policy).
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`policy - reference`: unbiased, high variance, may be negative.

    Args:
        logprobs: [N, C] of the policy; the gradient flows here.
        ref_logprobs: [N, C] of the frozen reference.

    Returns:
        [N, C], in nats, not masked.
    """
    return logprobs - ref_logprobs.detach()


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`(policy - reference)^2 / 2`: biased, low variance, never negative; otherwise like `k1`."""
    return (logprobs - ref_logprobs.detach()).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`exp(ref - pol) - (ref - pol) - 1`: unbiased, never negative; otherwise like `k1`.

    The estimator of DeepSeekMath (arXiv 2402.03300, eq. 4) and of the Time-R1 release.
    """
    log_ratio = ref_logprobs.detach() - logprobs
    return torch.expm1(log_ratio) - log_ratio  # expm1: no cancellation for small differences
