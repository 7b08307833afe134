"""Checks before the first step that sampler and trainer agree on log-probabilities."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from tvg.model.policy import Policy
from tvg.rollout.engine import RolloutEngine
from tvg.types import PromptBatch, RolloutBatch

log = logging.getLogger(__name__)


def merges_with_prefill(tokenizer: Any, prefill: str, completion: str) -> bool:
    """Returns whether the end of the prefill and the start of a completion merge into one token.

    If they merge, the policy has to continue a token sequence that the tokenizer never produces,
    because prompts and completions are tokenised separately.
    """
    apart = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prefill, completion)
    ]
    whole = tokenizer(prefill + completion, add_special_tokens=False)["input_ids"]
    return bool(list(whole) != [*apart[0], *apart[1]])


class PreflightError(ValueError):
    """Raised if sampler and trainer disagree on the log-probabilities of the same tokens."""


class Preflight:
    """Samples a few completions and scores the same tokens with the trainer's forward pass.

    If vision inputs, frame rate, positions, suppressed tokens or weights differ between sampler and
    trainer, the log-probabilities differ, too. Training would then silently optimise a wrong
    objective.

    Args:
        num_prompts: number of prompts to check, from the start of the first batch.
        num_completions: completions per prompt.
        max_abs_diff: largest difference allowed on any token in float32, in nats.
        half_mean_diff: largest mean difference allowed in half precision, in nats. bfloat16 has 8
            bits of precision, so single tokens can differ by 0.1 or more without an error. The mean
            is then still near 0.01.
    """

    def __init__(
        self,
        *,
        num_prompts: int,
        num_completions: int,
        max_abs_diff: float,
        half_mean_diff: float,
    ) -> None:
        self.num_prompts = num_prompts
        self.num_completions = num_completions
        self.max_abs_diff = max_abs_diff
        self.half_mean_diff = half_mean_diff

    def run(
        self, *, policy: Policy, rollout: RolloutEngine, prompts: PromptBatch, seed: int
    ) -> float:
        """Returns the largest difference in nats; in half precision, the mean difference.

        Raises:
            PreflightError: the difference is larger than allowed; the message names the worst token
                and likely causes.
        """
        few = prompts.rows(0, min(self.num_prompts, len(prompts)))
        sampled = rollout.generate(few, group_size=self.num_completions, seed=seed)
        with torch.no_grad():
            logprobs, _ = policy(
                few,
                sampled.completion_ids,
                sampled.completion_mask,
                group_size=self.num_completions,
                temperature=rollout.sampling.logprob_temperature,
            )
        difference = (logprobs - sampled.sampler_logprobs).abs() * sampled.completion_mask
        if _is_half(policy):
            kind, allowed = "mean", self.half_mean_diff
            found = float(difference.sum() / sampled.completion_mask.sum())
        else:
            kind, allowed = "largest", self.max_abs_diff
            found = float(difference.max())
        if not found <= allowed:  # also true for NaN
            worst = int(difference.nan_to_num(torch.inf).argmax())
            raise PreflightError(
                "preflight: sampler and trainer disagree on the log-probabilities of the same "
                f"tokens: {kind} difference {found:.3g} nats (allowed {allowed:.3g}), worst at "
                f"{self._describe(worst, sampled, logprobs)}. Possible causes: another frame rate "
                "or other position ids, stale weights in the sampler, another set of suppressed "
                "tokens, or dropout."
            )
        log.info("preflight: sampler and trainer agree to %.2g nats (%s)", found, kind)
        return found

    def _describe(self, index: int, sampled: RolloutBatch, logprobs: Tensor) -> str:
        """Describes a sampled token by its index in [N, C], with both log-probabilities."""
        row, column = divmod(index, logprobs.shape[1])
        return (
            f"token {column} of a completion for "
            f"{sampled.prompts.examples[row // self.num_completions].qid}: sampler "
            f"{float(sampled.sampler_logprobs[row, column]):.4f}, trainer "
            f"{float(logprobs[row, column]):.4f}"
        )


def _is_half(policy: Policy) -> bool:
    """Returns whether the policy computes in half precision: by its weights or autocast."""
    is_autocast = torch.is_autocast_enabled(policy.device.type)
    return is_autocast or next(policy.parameters()).dtype in (torch.bfloat16, torch.float16)
