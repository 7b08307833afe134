"""Log-probabilities of a rollout, computed in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tvg.model.policy import Policy
from tvg.types import RolloutBatch


@dataclass(frozen=True)
class Part:
    """Some prompts of a rollout and some completions of each."""

    prompts: range
    completions: range

    def rows(self, group_size: int) -> Tensor:
        """Row indices into the rollout, int64 [N of this part]."""
        first = torch.tensor(self.prompts)[:, None] * group_size
        return (first + torch.tensor(self.completions)).flatten()

    def of(self, rollout: RolloutBatch) -> RolloutBatch:
        return rollout.part(self.prompts, self.completions)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Scores the tokens of a rollout by a policy.

    Attributes:
        micro_batch_size: prompts per pass through the model.
        micro_batch_completions: completions of a group per pass; None: all.
        temperature: temperature of the sampler.
        fps: frame rate assumed when scoring, instead of the sampled one (reproduces a bug of the
            Time-R1 release, which scores at 2 whatever it sampled at); None: the true rate.
    """

    micro_batch_size: int
    micro_batch_completions: int | None
    temperature: float
    fps: float | None

    def parts(self, rollout: RolloutBatch) -> list[Part]:
        """Splits a rollout into parts: some prompts with all or some of their completions."""
        group, num = rollout.group_size, len(rollout.prompts)
        size = self.micro_batch_completions or group
        completions = [range(i, min(i + size, group)) for i in range(0, group, size)]
        step = self.micro_batch_size
        prompts = [range(i, min(i + step, num)) for i in range(0, num, step)]
        return [Part(some, mine) for some in prompts for mine in completions]

    def logprobs(self, policy: Policy, part: RolloutBatch) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every completion token, both [N, C]."""
        prompts = part.prompts
        if self.fps is not None:
            prompts = replace(prompts, sampled_fps=torch.full_like(prompts.sampled_fps, self.fps))
        out: tuple[Tensor, Tensor] = policy(
            prompts,
            part.completion_ids,
            part.completion_mask,
            group_size=part.group_size,
            temperature=self.temperature,
        )
        return out

    def frozen_logprobs(
        self, policy: Policy, rollout: RolloutBatch, parts: Sequence[Part]
    ) -> dict[Part, Tensor]:
        """Log-probabilities of each part without a gradient, [N of the part, C]."""
        with torch.no_grad():
            return {part: self.logprobs(policy, part.of(rollout))[0] for part in parts}
