"""Token-level terms of the policy loss, and the reductions that turn them into one number.

Every reduction takes its denominator from outside: computed over the whole optimizer step (all
micro-batches, all ranks) it makes micro-batched values and gradients add up to those of the full
batch. Where a framework averages gradients over ranks, multiply the loss by their number.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["token_mean", "sequence_mean"]


class ClipFractions(NamedTuple):
    """Shares of completion tokens whose gradient the clip removed, as scalars in [0, 1]."""

    low: Tensor  # importance ratio below 1 - clip_low and advantage < 0
    high: Tensor  # importance ratio above 1 + clip_high and advantage > 0


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate for every token, to be minimised (arXiv 1707.06347).

    `-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)`, ratio = exp(new - old).

    Args:
        logprobs: [N, C] of the policy; the gradient flows here.
        old_logprobs: [N, C] at sampling (`logprobs.detach()` for one update a rollout).
        advantages: [N], one for all tokens of a completion.
        clip_low: largest decrease of the ratio, in [0, 1].
        clip_high: largest increase of the ratio, at least 0.

    Returns:
        Loss per token [N, C] (not masked), and the importance ratio [N, C], detached.
    """
    assert advantages.shape == logprobs.shape[:1], (advantages.shape, logprobs.shape)
    ratio = torch.exp(logprobs - old_logprobs.detach())
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    weights = advantages.detach().unsqueeze(1)
    loss = -torch.minimum(ratio * weights, clipped_ratio * weights)
    return loss, ratio.detach()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate per token of KL(policy || reference), never negative.

    `exp(ref - pol) - (ref - pol) - 1`: the k3 estimator of http://joschu.net/blog/kl-approx.html,
    unbiased for tokens sampled from the policy.

    Args:
        logprobs: [N, C] of the policy; the gradient flows here.
        ref_logprobs: [N, C] of the frozen reference.

    Returns:
        [N, C], in nats, not masked.
    """
    log_ratio = ref_logprobs.detach() - logprobs
    return torch.expm1(log_ratio) - log_ratio  # expm1: no cancellation for small differences


def reduction_denominator(mask: Tensor, reduction: Reduction) -> Tensor:
    """What `reduce_tokens` divides by, to be summed over micro-batches and ranks.

    Args:
        mask: [N, C], nonzero where a completion token is.
        reduction: "token_mean": number of completion tokens; "sequence_mean": number of
            completions, those without any token included.

    Returns:
        int64 scalar on the mask's device.
    """
    if reduction == "token_mean":
        return mask.bool().sum()
    if reduction == "sequence_mean":
        return torch.tensor(mask.shape[0], device=mask.device)
    raise ValueError(f"reduction must be 'token_mean' or 'sequence_mean': got {reduction!r}")


def reduce_tokens(
    values: Tensor, mask: Tensor, *, reduction: Reduction, denominator: Tensor | float
) -> Tensor:
    """Sum per-token values to a scalar, with a denominator from outside.

    "token_mean" is `sum(values) / denominator` (Time-R1's default, `use_grpo=false`);
    "sequence_mean" averages each completion over its own tokens, then sums those averages over
    `denominator` (`use_grpo=true`). A completion without tokens adds 0.

    Args:
        values: [N, C]; what stands at masked places does not matter, NaN included.
        mask: [N, C], nonzero where a completion token is.
        reduction: which of the two.
        denominator: `reduction_denominator` of the whole optimizer step; 0 counts as 1.

    Returns:
        Scalar in the type of `values`.
    """
    assert values.shape == mask.shape, (values.shape, mask.shape)
    is_token = mask.bool()
    kept = values.masked_fill(~is_token, 0)
    if reduction == "token_mean":
        total = kept.sum()
    elif reduction == "sequence_mean":
        total = (kept.sum(dim=1) / is_token.sum(dim=1).clamp(min=1)).sum()
    else:
        raise ValueError(f"reduction must be 'token_mean' or 'sequence_mean': got {reduction!r}")
    return total / torch.as_tensor(denominator, device=values.device).clamp(min=1)


def clip_fractions(
    importance_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    denominator: Tensor | float | None = None,
) -> ClipFractions:
    """Shares of completion tokens on which the clip acts, apart for each side.

    Args:
        importance_ratio: [N, C].
        advantages: [N].
        mask: [N, C], nonzero where a completion token is.
        clip_low: as for `clipped_surrogate`.
        clip_high: as for `clipped_surrogate`.
        denominator: number of completion tokens of the whole step, so that micro-batches add up;
            None: those of this mask.
    """
    if denominator is None:
        denominator = reduction_denominator(mask, "token_mean")
    weights = advantages.unsqueeze(1)
    is_low = (importance_ratio < 1 - clip_low) & (weights < 0)
    is_high = (importance_ratio > 1 + clip_high) & (weights > 0)
    low, high = (
        reduce_tokens(is_clipped.float(), mask, reduction="token_mean", denominator=denominator)
        for is_clipped in (is_low, is_high)
    )
    return ClipFractions(low=low, high=high)
