"""Before the first step: do sampler and trainer mean the same by the same tokens?"""

from __future__ import annotations

import logging
from typing import Any

import torch

from tvg.model.policy import Policy
from tvg.rollout.hf import HFRollout
from tvg.types import PromptBatch

log = logging.getLogger(__name__)


class PreflightError(RuntimeError):
    """Sampler and trainer disagree on the log-probabilities of the same tokens."""


class Preflight:
    """Samples a few completions and scores the same tokens with the trainer's forward pass.

    Where vision inputs, frame rate, positions, suppressed tokens or weights differ between the two
    ways, the log-probabilities differ, and training would silently optimise something else.

    Args:
        num_prompts: prompts tried, the first of the first batch.
        num_completions: completions a prompt.
        max_abs_diff: largest difference allowed on any token, in nats, in float32. Half
            precision gets `half_precision_factor` times as much.
        half_precision_factor: see above; bfloat16 keeps 8 bits, so logits differ by about 1e-2.
    """

    def __init__(
        self,
        *,
        num_prompts: int,
        num_completions: int,
        max_abs_diff: float,
        half_precision_factor: float,
    ) -> None:
        self.num_prompts = num_prompts
        self.num_completions = num_completions
        self.max_abs_diff = max_abs_diff
        self.half_precision_factor = half_precision_factor

    def run(
        self, *, policy: Policy, rollout: HFRollout, tokenizer: Any, prompts: PromptBatch, seed: int
    ) -> float:
        """Returns the largest difference in nats.

        Raises:
            PreflightError: it is larger than allowed; names the worst token and the suspects.
        """
        few = prompts.rows(0, min(self.num_prompts, len(prompts)))
        sampled = rollout.generate(
            policy=policy,
            tokenizer=tokenizer,
            prompts=few,
            group_size=self.num_completions,
            seed=seed,
        )
        with torch.no_grad():
            logprobs, _ = policy(
                few,
                sampled.completion_ids,
                sampled.completion_mask,
                group_size=self.num_completions,
                temperature=rollout.logprob_temperature,
            )
        difference = (logprobs - sampled.old_logprobs).abs() * sampled.completion_mask
        worst = float(difference.max())
        allowed = self.max_abs_diff
        if next(policy.parameters()).dtype != torch.float32 or torch.is_autocast_enabled():
            allowed *= self.half_precision_factor
        if not worst <= allowed:  # also true for NaN
            row, column = divmod(
                int(difference.nan_to_num(torch.inf).argmax()), difference.shape[1]
            )
            raise PreflightError(
                "preflight: sampler and trainer disagree on the log-probabilities of the same "
                f"tokens: off by up to {worst:.3g} nats (allowed {allowed:.3g}), worst at token "
                f"{column} of a completion for {few.examples[row // self.num_completions].qid}: "
                f"sampler {float(sampled.old_logprobs[row, column]):.4f}, trainer "
                f"{float(logprobs[row, column]):.4f}. Suspects: the sampled frame rate or the "
                "position ids differ, stale weights in the sampler, another set of suppressed "
                "tokens, top_k/top_p truncation, or dropout."
            )
        log.info("preflight: sampler and trainer agree to %.2g nats", worst)
        return worst
