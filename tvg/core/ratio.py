"""Log importance ratios between the policy and another policy, and weights computed from them."""

from __future__ import annotations

import torch
from torch import Tensor


def token_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Returns the log of policy / old policy of each token, [N, C].

    Args:
        logprobs: [N, C] of the policy; the gradient flows here.
        old_logprobs: [N, C] of the old policy (the denominator); no gradient.
        mask: [N, C], nonzero where a token carries loss; the result is 0 elsewhere.
    """
    return (logprobs - old_logprobs.detach()).masked_fill(~mask.bool(), 0)


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Returns the log of the length-normalised ratio of completions, [N, C], constant in each row.

    `mean over the completion's tokens of (logprob - old_logprob)`: the log of GSPO's s_i (arXiv
    2507.18071, eq. 7). Its gradient reaches all tokens of the completion equally. The arguments are
    those of `token_log_ratio`. A completion without tokens has ratio 1.
    """
    total = token_log_ratio(logprobs, old_logprobs, mask).sum(dim=1, keepdim=True)
    return (total / mask.bool().sum(dim=1, keepdim=True).clamp(min=1)).expand_as(logprobs)


def truncated_weight(policy_logprobs: Tensor, sampler_logprobs: Tensor, *, cap: float) -> Tensor:
    """Returns truncated importance weights of tokens sampled by another engine, [N, C], detached.

    `min(exp(policy - sampler), cap)`. Both log-probabilities are computed with the weights that
    were used for sampling ("Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training", Yao et al. 2025).
    """
    return torch.exp(policy_logprobs.detach() - sampler_logprobs.detach()).clamp(max=cap)
