"""Group-relative policy optimisation: a clipped surrogate with an optional k3 KL penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from tvg.core.kl import k3
from tvg.core.ratio import token_log_ratio
from tvg.core.reduction import Reduction, reduce_tokens, reduction_denominator
from tvg.core.surrogate import clip_fractions, clipped
from tvg.types import LossOutput


class GRPOObjective:
    """GRPO's loss (arXiv 2402.03300, eq. 3) with both reductions of the Time-R1 release.

    `reduction="token_mean"` averages over all completion tokens (`use_grpo=false` there, its
    default); "sequence_mean" averages tokens within a completion, then completions
    (`use_grpo=true`). The denominator is given by the caller, so that micro-batches of one
    optimizer step add up to the loss of the whole step.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        kl_coef: weight of the KL to the frozen reference; 0 means that there is no reference.
        reduction: how per-token losses become one number.

    Raises:
        ValueError: a setting out of range; names the config key.
    """

    def __init__(
        self, *, clip_low: float, clip_high: float, kl_coef: float, reduction: Reduction
    ) -> None:
        for key, value in (("clip_low", clip_low), ("clip_high", clip_high), ("kl_coef", kl_coef)):
            if value < 0:
                raise ValueError(f"objective.loss.{key}: expected at least 0, got {value}")
        if reduction not in ("token_mean", "sequence_mean"):
            raise ValueError(
                f"objective.loss.reduction: expected token_mean or sequence_mean, got {reduction!r}"
            )
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.kl_coef = kl_coef
        self.reduction: Reduction = reduction

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def denominator(self, completion_mask: Tensor) -> Tensor:
        """What the summed loss is divided by, for the completions handed in."""
        return reduction_denominator(completion_mask, self.reduction)

    def __call__(
        self,
        *,
        logprobs: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor | None,
        entropy: Tensor,
        advantages: Tensor,
        completion_mask: Tensor,
        denominator: Tensor,
        num_tokens: Tensor,
    ) -> LossOutput:
        """Loss of some completions of a step, and their share of the step's metrics.

        Args:
            logprobs: [N, C] of the policy, with gradient.
            old_logprobs: [N, C] of the policy that sampled.
            ref_logprobs: [N, C] of the frozen reference; None where the KL weight is 0.
            entropy: [N, C], detached.
            advantages: [N].
            completion_mask: [N, C].
            denominator: of the whole optimizer step, from `denominator`.
            num_tokens: completion tokens of the whole optimizer step; metrics are token means.
        """
        log_ratio = token_log_ratio(logprobs, old_logprobs, completion_mask)
        ratio = log_ratio.detach().exp()
        per_token = clipped(
            log_ratio, logprobs, advantages, clip_low=self.clip_low, clip_high=self.clip_high
        )
        metrics: dict[str, Tensor] = {}
        if ref_logprobs is not None:
            kl = k3(logprobs, ref_logprobs)
            per_token = per_token + self.kl_coef * kl
            metrics["kl"] = _token_mean(kl, completion_mask, num_tokens)
        loss = reduce_tokens(
            per_token, completion_mask, reduction=self.reduction, denominator=denominator
        )
        low, high = clip_fractions(
            ratio.detach(),
            advantages,
            completion_mask,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            num_tokens=num_tokens,
        )
        metrics["entropy"] = _token_mean(entropy, completion_mask, num_tokens)
        metrics["importance_ratio"] = _token_mean(ratio, completion_mask, num_tokens)
        metrics["clip_fraction_low"] = low
        metrics["clip_fraction_high"] = high
        metrics["clip_fraction"] = low + high
        return LossOutput(loss=loss, metrics={k: v.detach() for k, v in metrics.items()})


def _token_mean(values: Tensor, mask: Tensor, num_tokens: Tensor) -> Tensor:
    return reduce_tokens(
        values.detach(), mask, reduction="token_mean", denominator=torch.as_tensor(num_tokens)
    )
