"""Reductions: how values per token become one number, each with its denominator from outside.

Computed over the whole optimizer step (all micro-batches, all ranks) the denominator makes
micro-batched values and gradients add up to those of the full batch. Where a framework averages
gradients over ranks, hand in the mean over ranks instead of the sum.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["token_mean", "group_token_mean", "sequence_mean", "max_tokens"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


def reduction_denominator(
    mask: Tensor, reduction: Reduction, *, max_tokens: int | None = None
) -> Tensor:
    """The denominator of `reduce_tokens`, to be summed over micro-batches and ranks.

    Args:
        mask: [N, C], nonzero where a token carries loss.
        reduction: "token_mean": number of those tokens; "sequence_mean" and "group_token_mean":
            number of completions, those without any token included; "max_tokens": number of
            completions times `max_tokens`.
        max_tokens: length limit of a completion, for "max_tokens" alone.

    Returns:
        int64 scalar on the mask's device.
    """
    _check(reduction)
    if reduction == "token_mean":
        return mask.bool().sum()
    num_completions = mask.shape[0]
    if reduction == "max_tokens":
        assert max_tokens is not None, "max_tokens needs the length limit"
        return torch.tensor(num_completions * max_tokens, device=mask.device)
    return torch.tensor(num_completions, device=mask.device)


def reduce_tokens(
    values: Tensor,
    mask: Tensor,
    *,
    reduction: Reduction,
    denominator: Tensor | float,
    group_lengths: Tensor | None = None,
) -> Tensor:
    """Sum per-token values to a scalar, with a denominator from outside.

    "token_mean" and "max_tokens" are `sum(values) / denominator` (the second is Dr. GRPO, arXiv
    2503.20783); "sequence_mean" averages each completion over its own tokens, then sums those
    averages over `denominator` (arXiv 2402.03300, eq. 3; Time-R1's `use_grpo=true`);
    "group_token_mean" divides it by its group's mean length instead, so that groups weigh alike:
    the mean over a group's tokens, then over groups (Time-R1's default, `use_grpo=false`, which
    has one group a pass). A completion without tokens adds 0.

    Args:
        values: [N, C]; what stands at masked places does not matter, NaN included.
        mask: [N, C], nonzero where a token carries loss.
        reduction: which of the four.
        denominator: `reduction_denominator` of the whole optimizer step; 0 counts as 1.
        group_lengths: [N], mean number of tokens with loss of the completions of each one's group;
            for "group_token_mean" alone.

    Returns:
        Scalar in the type of `values`.
    """
    assert values.shape == mask.shape, (values.shape, mask.shape)
    _check(reduction)
    is_token = mask.bool()
    kept = values.masked_fill(~is_token, 0)
    if reduction == "sequence_mean":
        kept = kept.sum(dim=1) / is_token.sum(dim=1).clamp(min=1)
    elif reduction == "group_token_mean":
        assert group_lengths is not None, "group_token_mean needs the groups' lengths"
        lengths = group_lengths.to(kept)
        kept = kept.sum(dim=1) / lengths.where(lengths > 0, 1)
    return kept.sum() / torch.as_tensor(denominator, device=values.device).clamp(min=1)


def mean_group_lengths(mask: Tensor, *, group_size: int) -> Tensor:
    """Mean number of tokens of a completion in each one's group: [N] of mask [N, C], float64."""
    lengths = mask.bool().sum(dim=1).double().view(-1, group_size)
    return lengths.mean(dim=1).repeat_interleave(group_size)


def token_mean(values: Tensor, mask: Tensor, num_tokens: Tensor | float) -> Tensor:
    """Sum of [N, C] over the mask, over the number of tokens of the whole step; detached."""
    return reduce_tokens(values.detach(), mask, reduction="token_mean", denominator=num_tokens)


def _check(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}: got {reduction!r}")
