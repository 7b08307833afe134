"""Reductions: how values per token become one number, each with its denominator from outside.

Computed over the whole optimizer step (all micro-batches, all ranks) the denominator makes
micro-batched values and gradients add up to those of the full batch. Where a framework averages
gradients over ranks, hand in the mean over ranks instead of the sum.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["token_mean", "sequence_mean", "max_tokens"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


def reduction_denominator(
    mask: Tensor, reduction: Reduction, *, max_tokens: int | None = None
) -> Tensor:
    """What `reduce_tokens` divides by, to be summed over micro-batches and ranks.

    Args:
        mask: [N, C], nonzero where a token carries loss.
        reduction: "token_mean": number of those tokens; "sequence_mean": number of completions,
            those without any token included; "max_tokens": number of completions times
            `max_tokens`.
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
    values: Tensor, mask: Tensor, *, reduction: Reduction, denominator: Tensor | float
) -> Tensor:
    """Sum per-token values to a scalar, with a denominator from outside.

    "token_mean" and "max_tokens" are `sum(values) / denominator` (the first is Time-R1's default,
    `use_grpo=false`; the second Dr. GRPO, arXiv 2503.20783); "sequence_mean" averages each
    completion over its own tokens, then sums those averages over `denominator` (arXiv 2402.03300,
    eq. 3; `use_grpo=true`). A completion without tokens adds 0.

    Args:
        values: [N, C]; what stands at masked places does not matter, NaN included.
        mask: [N, C], nonzero where a token carries loss.
        reduction: which of the three.
        denominator: `reduction_denominator` of the whole optimizer step; 0 counts as 1.

    Returns:
        Scalar in the type of `values`.
    """
    assert values.shape == mask.shape, (values.shape, mask.shape)
    _check(reduction)
    is_token = mask.bool()
    kept = values.masked_fill(~is_token, 0)
    if reduction == "sequence_mean":
        kept = kept.sum(dim=1) / is_token.sum(dim=1).clamp(min=1)
    return kept.sum() / torch.as_tensor(denominator, device=values.device).clamp(min=1)


def token_mean(values: Tensor, mask: Tensor, num_tokens: Tensor | float) -> Tensor:
    """Sum of [N, C] over the mask, over the number of tokens of the whole step; detached."""
    return reduce_tokens(values.detach(), mask, reduction="token_mean", denominator=num_tokens)


def _check(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}: got {reduction!r}")
