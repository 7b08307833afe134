"""Log importance ratios of the policy to another one, and the weights made of them."""

from __future__ import annotations

import torch
from torch import Tensor


def token_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log of policy / old policy for each token by itself: [N, C].

    Args:
        logprobs: [N, C] of the policy; the gradient flows here.
        old_logprobs: [N, C] of the policy that is divided by; no gradient.
        mask: [N, C], nonzero where a token carries loss; 0 is returned elsewhere.
    """
    return (logprobs - old_logprobs.detach()).masked_fill(~mask.bool(), 0)


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log of the length-normalised ratio of whole completions: [N, C], equal along each row.

    `mean over the completion's tokens of (logprob - old_logprob)`: GSPO's s_i (arXiv 2507.18071,
    eq. 7), whose gradient reaches all tokens of the completion alike. Arguments as for
    `token_log_ratio`; a completion without tokens has ratio 1.
    """
    total = token_log_ratio(logprobs, old_logprobs, mask).sum(dim=1, keepdim=True)
    return (total / mask.bool().sum(dim=1, keepdim=True).clamp(min=1)).expand_as(logprobs)


def truncated_weight(policy_logprobs: Tensor, sampler_logprobs: Tensor, *, cap: float) -> Tensor:
    """Truncated importance weight of tokens drawn by another engine: [N, C], no gradient.

    `min(exp(policy - sampler), cap)`, both of the weights that sampled ("Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training", Yao et al. 2025).
    """
    return torch.exp(policy_logprobs.detach() - sampler_logprobs.detach()).clamp(max=cap)
