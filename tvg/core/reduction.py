"""Reductions of per-token values to one scalar, with a denominator given by the caller.

If the denominator covers the entire optimizer step (all micro-batches, all ranks), values and
gradients of micro-batches add up to the values and gradients of the full batch. If a framework
averages gradients over ranks, pass the denominator's mean over ranks instead of the sum.
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
    """Returns the denominator of `reduce_tokens`, to be summed over micro-batches and ranks.

    - "token_mean": number of tokens that carry loss.
    - "sequence_mean" and "group_token_mean": number of completions, also those without such tokens.
    - "max_tokens": number of completions times `max_tokens`.

    Args:
        mask: [N, C], nonzero where a token carries loss.
        reduction: one of the four names.
        max_tokens: length limit of a completion; used only by "max_tokens".

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
    """Reduces per-token values to a scalar, with a denominator given by the caller.

    - "token_mean" and "max_tokens": `sum(values) / denominator` ("max_tokens" is Dr. GRPO, arXiv
      2503.20783).
    - "sequence_mean": averages over the tokens of each completion, then divides the sum of these
      averages by `denominator` (arXiv 2402.03300, eq. 3; Time-R1's `use_grpo=true`).
    - "group_token_mean": divides each completion's sum by its group's mean length instead. This is
      the mean over a group's tokens, then over groups, so all groups have equal weight (Time-R1's
      default, `use_grpo=false`, which has one group per pass).

    A completion without tokens adds 0.

    Args:
        values: [N, C]; values at masked positions are ignored, even NaN.
        mask: [N, C], nonzero where a token carries loss.
        reduction: one of the four names.
        denominator: `reduction_denominator` of the entire optimizer step; below 1 counts as 1.
        group_lengths: [N], mean number of tokens with loss in the completions of each completion's
            group; used only by "group_token_mean".

    Returns:
        Scalar in the dtype of `values`.
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
    """Returns the mean length of the completions in each completion's group: float64 [N]."""
    lengths = mask.bool().sum(dim=1).double().view(-1, group_size)
    return lengths.mean(dim=1).repeat_interleave(group_size)


def token_mean(values: Tensor, mask: Tensor, num_tokens: Tensor | float) -> Tensor:
    """Returns the masked sum of [N, C], divided by the tokens of the entire step; detached."""
    return reduce_tokens(values.detach(), mask, reduction="token_mean", denominator=num_tokens)


def _check(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}: got {reduction!r}")
