"""GRPO: sample a group, score it, push towards what scored above the group's mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tvg.core.advantage import group_advantages
from tvg.core.parsing import ParsedAnswer
from tvg.model.flops import rollout_flops
from tvg.model.policy import Policy
from tvg.objective.grpo import GRPOObjective
from tvg.reward.base import Completions
from tvg.reward.weighted import WeightedReward
from tvg.rollout.base import Rollout
from tvg.task.grounding import GroundingTask
from tvg.training.base import OptimizerFactory, PolicyModule, ScheduleFactory
from tvg.training.preflight import Preflight
from tvg.training.reference import frozen_copy, in_use
from tvg.training.rollout_log import reward_metrics, rollout_rows
from tvg.types import LossOutput, PromptBatch, RewardOutput, RolloutBatch


@dataclass(frozen=True)
class _Part:
    """Some prompts of a rollout and some completions of each."""

    prompts: range
    completions: range

    def rows(self, group_size: int) -> Tensor:
        """Rows of the rollout, int64 [N of this part]."""
        first = torch.tensor(self.prompts)[:, None] * group_size
        return (first + torch.tensor(self.completions)).flatten()

    def of(self, rollout: RolloutBatch) -> RolloutBatch:
        return rollout.part(self.prompts, self.completions)


class GRPOModule(PolicyModule):
    """Group-relative policy optimisation with verifiable rewards.

    One update per rollout: the probabilities at sampling time are the policy's own of this step
    (as in the Time-R1 release), so the importance ratio is exactly 1. How far the sampler's
    log-probabilities are from them is logged as `train/policy/sampler_gap`.

    Args:
        rollout: the sampler.
        reward: scores completions.
        loss: the objective.
        group_size: completions a prompt.
        advantage_scale: "group_std" or "none".
        reference: "initial" keeps a frozen copy of the policy as it starts where the objective has
            a KL weight (and only there); None never does. What is frozen in the policy is shared.
        reference_offload: keep the reference's own weights on the CPU between uses.
        micro_batch_completions: completions of a group that go through forward and backward
            together; None: all. Fewer need less memory, and the prompt is computed again for each
            part; the gradient is the same.
        preflight: compares sampler and trainer before the first step; None to skip it.
        policy, tokenizer, task, eval_rollout, micro_batch_size, optimizer, schedule,
            max_grad_norm, seed: as for `PolicyModule`.

    Raises:
        ValueError: a group of fewer than 2, or a KL weight without a reference.
    """

    def __init__(
        self,
        *,
        rollout: Rollout,
        reward: WeightedReward,
        loss: GRPOObjective,
        group_size: int,
        advantage_scale: Literal["group_std", "none"],
        reference: Literal["initial"] | None,
        reference_offload: bool,
        micro_batch_completions: int | None,
        preflight: Preflight | None,
        policy: Policy,
        tokenizer: Any,
        task: GroundingTask,
        eval_rollout: Rollout,
        micro_batch_size: int,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        max_grad_norm: float | None,
        seed: int,
    ) -> None:
        super().__init__(
            policy=policy,
            tokenizer=tokenizer,
            task=task,
            eval_rollout=eval_rollout,
            micro_batch_size=micro_batch_size,
            optimizer=optimizer,
            schedule=schedule,
            max_grad_norm=max_grad_norm,
            seed=seed,
        )
        if group_size < 2:
            raise ValueError(f"objective.group_size: expected at least 2, got {group_size}")
        self.rollout = rollout
        self.reward = reward
        self.loss = loss
        self.group_size = group_size
        self.advantage_scale: Literal["group_std", "none"] = advantage_scale
        if micro_batch_completions is not None and micro_batch_completions < 1:
            raise ValueError(
                "objective.micro_batch_completions: expected at least 1, or null, "
                f"got {micro_batch_completions}"
            )
        self.micro_batch_completions = micro_batch_completions
        self.reference_offload = reference_offload
        self.preflight = preflight
        self.reference: Policy | None = None
        if loss.needs_reference and reference is None:
            raise ValueError(
                f"objective.loss.kl_coef: {loss.kl_coef:g} needs a reference, but "
                "objective.reference is null"
            )
        if loss.needs_reference:
            self.reference = frozen_copy(self.policy)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        is_encoded = batch.video_features is not None
        with self.stage("vision"):
            batch = self.policy.encode_clips(batch)  # once, for all that follows
        self._check_sampler(batch)
        with self.stage("sampling"):
            rollout = self.rollout.generate(
                policy=self.policy,
                tokenizer=self.tokenizer,
                prompts=batch,
                group_size=self.group_size,
                seed=self.step_seed(),
            )
        with self.stage("reward"):
            answers = [self.task.parse(text) for text in rollout.texts]
            rewards = self._score(rollout, answers)
        advantages = group_advantages(
            rewards.total.to(self.device), group_size=self.group_size, scale=self.advantage_scale
        )
        totals = self._learn(rollout, advantages)
        self._log(rollout, answers, rewards, {**totals, **self.step_optimizer()})
        return {
            "num_prompts": len(batch),
            "num_tokens": int(rollout.completion_mask.sum()),
            "num_flops": rollout_flops(
                self.policy,
                rollout,
                has_reference=self.reference is not None,
                is_encoded=is_encoded,
            ),
            "rollout_rows": rollout_rows(rollout, answers, rewards),
            "stage_s": self.stages.take(),
        }

    def _check_sampler(self, batch: PromptBatch) -> None:
        """The preflight, once, in the step itself: at the precision that training has."""
        if self.preflight is not None:
            self.preflight.run(
                policy=self.policy,
                rollout=self.rollout,
                tokenizer=self.tokenizer,
                prompts=batch,
                seed=self.seed,
            )
            self.preflight = None

    def _score(self, rollout: RolloutBatch, answers: list[ParsedAnswer]) -> RewardOutput:
        examples = [e for e in rollout.prompts.examples for _ in range(self.group_size)]
        for example in rollout.prompts.examples:
            if example.segment is None:
                raise ValueError(f"{example.qid}: reinforcement training needs a true segment")
        return self.reward(
            Completions(
                texts=rollout.texts,
                answers=answers,
                truths=[e.segment for e in examples if e.segment is not None],
                durations_s=rollout.prompts.duration_s.repeat_interleave(self.group_size).tolist(),
                examples=examples,
                num_tokens=rollout.completion_mask.sum(1).tolist(),
                is_finished=rollout.is_finished.tolist(),
                group_size=self.group_size,
            )
        )

    def _learn(self, rollout: RolloutBatch, advantages: Tensor) -> dict[str, Tensor]:
        denominator = self.mean_over_ranks(self.loss.denominator(rollout.completion_mask))
        num_tokens = self.mean_over_ranks(rollout.completion_mask.sum())
        parts = self._parts(rollout)
        with self.stage("reference"):
            references = self._reference_logprobs(rollout, parts)

        def loss_of(part: _Part) -> LossOutput:
            mine = part.of(rollout)
            logprobs, entropy = self._logprobs(self.policy, mine)
            output = self.loss(
                logprobs=logprobs,
                old_logprobs=logprobs.detach(),
                ref_logprobs=references.get(part),
                entropy=entropy,
                advantages=advantages[part.rows(self.group_size).to(advantages.device)],
                completion_mask=mine.completion_mask,
                denominator=denominator,
                num_tokens=num_tokens,
            )
            gap = ((logprobs.detach() - mine.old_logprobs).abs() * mine.completion_mask).sum()
            return LossOutput(
                loss=output.loss, metrics={**output.metrics, "sampler_gap": gap / num_tokens}
            )

        return self.backward_micro_batches(parts, loss_of)

    def _parts(self, rollout: RolloutBatch) -> list[_Part]:
        """What goes through the model together: some prompts, all or some of their completions."""
        size = self.micro_batch_completions or self.group_size
        groups = [range(i, min(i + size, self.group_size)) for i in range(0, self.group_size, size)]
        return [
            _Part(prompts, completions)
            for prompts in self.micro_batches(len(rollout.prompts))
            for completions in groups
        ]

    def _reference_logprobs(
        self, rollout: RolloutBatch, parts: Sequence[_Part]
    ) -> dict[_Part, Tensor]:
        """[N, C] of each part; nothing where there is no reference."""
        if self.reference is None:
            return {}
        used = in_use(
            self.reference, self.policy, device=self.device, offload=self.reference_offload
        )
        with torch.no_grad(), used as reference:
            return {part: self._logprobs(reference, part.of(rollout))[0] for part in parts}

    def _logprobs(self, policy: Policy, part: RolloutBatch) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = policy(
            part.prompts,
            part.completion_ids,
            part.completion_mask,
            group_size=part.group_size,
            temperature=self.rollout.logprob_temperature,
        )
        return out

    def _log(
        self,
        rollout: RolloutBatch,
        answers: list[ParsedAnswer],
        rewards: RewardOutput,
        totals: Mapping[str, Tensor],
    ) -> None:
        own = ("loss", "grad_norm", "learning_rate")
        metrics: dict[str, Tensor | float] = {
            name if name in own else f"policy/{name}": value for name, value in totals.items()
        }
        metrics |= reward_metrics(rewards, self.group_size)
        lengths = rollout.completion_mask.sum(1).float()
        metrics["completion/length"] = lengths.mean()
        metrics["completion/truncated"] = 1 - rollout.is_finished.float().mean()
        metrics["completion/parse_rate"] = statistics.fmean(a.segment is not None for a in answers)
        self.log_step(metrics, show=("loss", "reward/total"))
        self.log_step({"completion/max_length": lengths.max()}, reduce="max")
