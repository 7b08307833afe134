"""Surrogate losses per token, from importance ratio and advantage.

All surrogates have the same signature, so a config can select any (`objective.loss.surrogate`):
`(log_ratio [N, C], logprobs [N, C], advantages [N], *, clip_low, clip_high) -> loss [N, C]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tvg.core.reduction import token_mean

Surrogate = Callable[..., Tensor]


class ClipFractions(NamedTuple):
    """Fractions of tokens at which the clip is active, as scalars in [0, 1]."""

    low: Tensor  # importance ratio below 1 - clip_low and advantage < 0
    high: Tensor  # importance ratio above 1 + clip_high and advantage > 0


def clipped(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """PPO's clipped surrogate, to be minimised (arXiv 1707.06347, eq. 7).

    `-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)`, ratio = exp(log_ratio).

    Args:
        log_ratio: [N, C], policy minus old policy; the gradient flows here.
        logprobs: [N, C] of the policy; not used.
        advantages: [N], one for all tokens of a completion.
        clip_low: largest decrease of the ratio, in [0, 1].
        clip_high: largest increase of the ratio, at least 0.

    Returns:
        [N, C], not masked.
    """
    assert advantages.shape == log_ratio.shape[:1], (advantages.shape, log_ratio.shape)
    ratio = torch.exp(log_ratio)
    weights = advantages.detach().unsqueeze(1)
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * weights, clipped_ratio * weights)


def cispo(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Policy gradient weighted by the clipped importance ratio (MiniMax-M1, arXiv 2506.13585).

    `-sg(clip(ratio, 1 - clip_low, 1 + clip_high)) * A * logprob` (eq. 4 and 5, sg: stop gradient).
    Every token keeps its gradient, with a bounded weight. The arguments are those of `clipped`, but
    the gradient flows only through `logprobs`. clip_low=1 means no lower bound on the weight.
    """
    assert advantages.shape == log_ratio.shape[:1], (advantages.shape, log_ratio.shape)
    weights = torch.exp(log_ratio.detach()).clamp(1 - clip_low, 1 + clip_high)
    return -weights * advantages.detach().unsqueeze(1) * logprobs


def clip_fractions(
    importance_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    num_tokens: Tensor | float,
) -> ClipFractions:
    """Returns the fractions of tokens at which the clip of `clipped` is active, for each side.

    Args:
        importance_ratio: [N, C].
        advantages: [N].
        mask: [N, C], nonzero where a token carries loss.
        clip_low: as for `clipped`.
        clip_high: as for `clipped`.
        num_tokens: number of tokens in the entire step, so that micro-batches add up.
    """
    weights = advantages.unsqueeze(1)
    is_low = (importance_ratio < 1 - clip_low) & (weights < 0)
    is_high = (importance_ratio > 1 + clip_high) & (weights > 0)
    return ClipFractions(
        low=token_mean(is_low.to(importance_ratio.dtype), mask, num_tokens),
        high=token_mean(is_high.to(importance_ratio.dtype), mask, num_tokens),
    )
