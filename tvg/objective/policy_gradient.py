"""The policy-gradient objective; surrogate, ratio, KL, entropy and reduction are settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from tvg.core import kl as kl_estimators
from tvg.core.ratio import sequence_log_ratio, token_log_ratio, truncated_weight
from tvg.core.reduction import (
    REDUCTIONS,
    Reduction,
    reduce_tokens,
    reduction_denominator,
    token_mean,
)
from tvg.core.surrogate import Surrogate, clip_fractions
from tvg.types import LossOutput

log = logging.getLogger(__name__)

RatioLevel = Literal["token", "sequence"]
KLEstimator = Literal["k1", "k2", "k3"]
KLPlace = Literal["loss", "reward"]

RATIOS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "token": token_log_ratio,
    "sequence": sequence_log_ratio,
}
ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": kl_estimators.k1,
    "k2": kl_estimators.k2,
    "k3": kl_estimators.k3,
}


class PolicyObjective:
    """GRPO and its variants (arXiv 2402.03300, eq. 3), which differ only in settings.

    `reduce(weight * surrogate(ratio, A) + kl_coef * KL) - entropy_coef * token_mean(H)`.

    The caller computes the denominators over the entire optimizer step and all ranks, so that the
    losses of micro-batches add up to the loss of the step. The entropy bonus is always a mean over
    tokens, so that its coefficient has the same meaning for every reduction.

    Args:
        surrogate: loss per token, from `tvg.core.surrogate`.
        ratio_level: "token": one ratio per token; "sequence": one length-normalised ratio per
            completion (GSPO, arXiv 2507.18071).
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        reduction: "token_mean": mean over all tokens; "group_token_mean": mean over the tokens of
            each group, then over groups; "sequence_mean": mean over each completion, then over
            completions; "max_tokens": sum divided by completions * max_tokens.
        max_tokens: length limit of a completion, for "max_tokens".
        kl_coef: weight of the KL to the frozen reference; 0 means that no reference is needed.
        kl_estimator: "k1", "k2" or "k3", see `tvg.core.kl`.
        kl_in: "loss": added to the loss; "reward": subtracted from the reward (`reward_penalty`).
        entropy_coef: weight of the entropy bonus, at least 0.
        sampler_ratio_cap: cap of the truncated importance weight that corrects for a sampler whose
            probabilities differ from the policy's (Yao et al. 2025); None: no weight.
        mask_truncated: truncated completions carry no loss (DAPO's overlong filtering, arXiv
            2503.14476).

    Raises:
        ValueError: a setting is out of range; the message names the config key.
    """

    def __init__(
        self,
        *,
        surrogate: Surrogate,
        ratio_level: RatioLevel,
        clip_low: float,
        clip_high: float,
        reduction: Reduction,
        max_tokens: int,
        kl_coef: float,
        kl_estimator: KLEstimator,
        kl_in: KLPlace,
        entropy_coef: float,
        sampler_ratio_cap: float | None,
        mask_truncated: bool,
    ) -> None:
        _at_least_0(clip_low=clip_low, clip_high=clip_high, kl_coef=kl_coef)
        _at_least_0(entropy_coef=entropy_coef)
        _one_of("ratio_level", ratio_level, RATIOS)
        _one_of("reduction", reduction, REDUCTIONS)
        _one_of("kl_estimator", kl_estimator, ESTIMATORS)
        _one_of("kl_in", kl_in, ("loss", "reward"))
        if clip_low > 1:
            raise ValueError(f"objective.loss.clip_low: expected at most 1, got {clip_low}")
        if max_tokens < 1:
            raise ValueError(f"objective.loss.max_tokens: expected at least 1, got {max_tokens}")
        if sampler_ratio_cap is not None and not sampler_ratio_cap > 0:
            raise ValueError(
                "objective.loss.sampler_ratio_cap: expected more than 0, or null, "
                f"got {sampler_ratio_cap}"
            )
        if kl_coef > 0 and kl_in == "loss" and kl_estimator == "k1":
            log.warning(
                "objective.loss.kl_estimator: the expected gradient of k1 in the loss is zero, so "
                "k1 only adds noise; use k2 or k3, or objective.loss.kl_in=reward"
            )
        self.surrogate = surrogate
        self.ratio_level = ratio_level
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.reduction: Reduction = reduction
        self.max_tokens = max_tokens
        self.kl_coef = kl_coef
        self.kl_estimator = kl_estimator
        self.kl_in = kl_in
        self.entropy_coef = entropy_coef
        self.sampler_ratio_cap = sampler_ratio_cap
        self.mask_truncated = mask_truncated

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def needs_entropy_gradient(self) -> bool:
        return self.entropy_coef > 0

    def loss_mask(self, completion_mask: Tensor, is_finished: Tensor) -> Tensor:
        """Returns the mask of the tokens that carry loss, [N, C].

        Args:
            completion_mask: [N, C].
            is_finished: bool [N].
        """
        if not self.mask_truncated:
            return completion_mask
        return completion_mask * is_finished.to(completion_mask).unsqueeze(1)

    def denominator(self, loss_mask: Tensor) -> Tensor:
        """Returns the denominator of the loss for the given completions [N, C]."""
        return reduction_denominator(loss_mask, self.reduction, max_tokens=self.max_tokens)

    def reward_penalty(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
        """Returns the KL penalty to subtract from each reward if `kl_in` is "reward".

        Args:
            logprobs: [N, C] of the policy that sampled.
            ref_logprobs: [N, C] of the frozen reference.
            mask: [N, C], the completion's tokens.

        Returns:
            [N], kl_coef * sum of the KL estimates over the completion's tokens; no gradient.
        """
        kl = ESTIMATORS[self.kl_estimator](logprobs.detach(), ref_logprobs)
        return self.kl_coef * kl.masked_fill(~mask.bool(), 0).sum(dim=1)

    def __call__(
        self,
        *,
        logprobs: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor | None,
        sampler_logprobs: Tensor | None,
        policy_old_logprobs: Tensor | None,
        entropy: Tensor,
        advantages: Tensor,
        loss_mask: Tensor,
        denominator: Tensor,
        num_tokens: Tensor,
        group_lengths: Tensor | None = None,
    ) -> LossOutput:
        """Returns the loss of some of a step's completions, and their share of the step's metrics.

        Args:
            logprobs: [N, C] of the policy, with gradient.
            old_logprobs: [N, C], the denominator of the ratio: log-probs of the policy at sampling
                time (with one update per rollout: `logprobs.detach()`), or of the sampler.
            ref_logprobs: [N, C] of the frozen reference; None if the KL weight is 0.
            sampler_logprobs: [N, C], reported by the sampler; needed for sampler_ratio_cap.
            policy_old_logprobs: [N, C] of the policy at sampling time, compared with the sampler's;
                None: old_logprobs.
            entropy: [N, C]; with gradient if `needs_entropy_gradient`.
            advantages: [N].
            loss_mask: [N, C], from `loss_mask`.
            denominator: denominator of the entire optimizer step, from `denominator`.
            num_tokens: number of tokens in the loss mask of the entire optimizer step. The entropy
                bonus and the metrics are means over these tokens.
            group_lengths: [N], for reduction "group_token_mean" (`mean_group_lengths`).
        """
        log_ratio = RATIOS[self.ratio_level](logprobs, old_logprobs, loss_mask)
        clip = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        per_token = self.surrogate(log_ratio, logprobs, advantages, **clip)
        means = {"entropy": entropy, "importance_ratio": log_ratio.detach().exp()}
        if self.sampler_ratio_cap is not None:
            assert sampler_logprobs is not None, "sampler_ratio_cap needs sampler_logprobs"
            at_sampling = old_logprobs if policy_old_logprobs is None else policy_old_logprobs
            weight = truncated_weight(at_sampling, sampler_logprobs, cap=self.sampler_ratio_cap)
            per_token = per_token * weight
            means["sampler_weight"] = weight
        if ref_logprobs is not None:
            means["kl"] = kl = ESTIMATORS[self.kl_estimator](logprobs, ref_logprobs)
            if self.kl_in == "loss":
                per_token = per_token + self.kl_coef * kl
        loss = reduce_tokens(
            per_token,
            loss_mask,
            reduction=self.reduction,
            denominator=denominator,
            group_lengths=group_lengths,
        )
        if self.needs_entropy_gradient:
            bonus = reduce_tokens(
                entropy, loss_mask, reduction="token_mean", denominator=num_tokens
            )
            loss = loss - self.entropy_coef * bonus
        metrics = {k: token_mean(v, loss_mask, num_tokens) for k, v in means.items()}
        low, high = clip_fractions(
            means["importance_ratio"], advantages, loss_mask, num_tokens=num_tokens, **clip
        )
        metrics |= {"clip_fraction_low": low, "clip_fraction_high": high}
        metrics["clip_fraction"] = low + high
        return LossOutput(loss=loss, metrics=metrics)


def _at_least_0(**settings: float) -> None:
    for key, value in settings.items():
        if not value >= 0:
            raise ValueError(f"objective.loss.{key}: expected at least 0, got {value}")


def _one_of(key: str, got: str, known: Mapping[str, object] | tuple[str, ...]) -> None:
    if got not in known:
        raise ValueError(f"objective.loss.{key}: expected one of {', '.join(known)}, got {got!r}")
