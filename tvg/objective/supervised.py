"""Loss of supervised fine-tuning: the cross-entropy of the target answer."""

from __future__ import annotations

from torch import Tensor

from tvg.core.reduction import reduce_tokens
from tvg.types import LossOutput


def supervised_loss(
    logprobs: Tensor, entropy: Tensor, completion_mask: Tensor, *, num_tokens: Tensor
) -> LossOutput:
    """Returns the mean negative log-probability of the entire optimizer step's answer tokens.

    Args:
        logprobs: [B, C] of the target tokens, with gradient; prompt tokens carry no loss.
        entropy: [B, C], detached.
        completion_mask: [B, C].
        num_tokens: the denominator: number of answer tokens in all micro-batches of the step.
    """
    loss = reduce_tokens(-logprobs, completion_mask, reduction="token_mean", denominator=num_tokens)
    mean_entropy = reduce_tokens(
        entropy, completion_mask, reduction="token_mean", denominator=num_tokens
    )
    return LossOutput(loss=loss, metrics={"entropy": mean_entropy.detach()})
