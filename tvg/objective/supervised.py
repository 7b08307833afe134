"""Supervised fine-tuning: cross-entropy of the target answer only."""

from __future__ import annotations

from torch import Tensor

from tvg.core.reduction import reduce_tokens
from tvg.types import LossOutput


def supervised_loss(
    logprobs: Tensor, entropy: Tensor, completion_mask: Tensor, *, num_tokens: Tensor
) -> LossOutput:
    """Mean negative log-probability over the answer tokens of the whole optimizer step.

    Args:
        logprobs: [B, C] of the target tokens, with gradient; prompt tokens carry no loss.
        entropy: [B, C], detached.
        completion_mask: [B, C].
        num_tokens: the denominator: answer tokens of the whole step (all micro-batches).
    """
    loss = reduce_tokens(-logprobs, completion_mask, reduction="token_mean", denominator=num_tokens)
    mean_entropy = reduce_tokens(
        entropy, completion_mask, reduction="token_mean", denominator=num_tokens
    )
    return LossOutput(loss=loss, metrics={"entropy": mean_entropy.detach()})
