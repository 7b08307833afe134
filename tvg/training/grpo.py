"""GRPO and variants: sample a group, score it, reinforce what scores above the group's mean."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from tvg.core.limits import group_size_problems, reference_problems, refuse
from tvg.core.reduction import mean_group_lengths
from tvg.model.flops import rollout_flops
from tvg.model.policy import Policy
from tvg.objective.policy_gradient import PolicyObjective
from tvg.reward.weighted import WeightedReward
from tvg.rollout.base import Rollout
from tvg.task.grounding import GroundingTask
from tvg.training.learning import (
    Advantage,
    Learnt,
    advantages_of_rank,
    completions_of,
    kl_penalty,
    part_loss,
    sampler_gap,
)
from tvg.training.lightning_internals import forget_logged
from tvg.training.nonfinite import completion_rows
from tvg.training.policy_module import OptimizerFactory, PolicyModule, ScheduleFactory
from tvg.training.preflight import Preflight
from tvg.training.reference import frozen_copy, in_use
from tvg.training.resampling import FlatGroupResampling
from tvg.training.rollout_log import Said, rollout_metrics, rollout_rows, update_metrics
from tvg.training.scoring import Part, Scoring
from tvg.types import LossOutput, PromptBatch, RolloutBatch

log = logging.getLogger(__name__)

OldLogprobs = Literal["policy", "sampler"]


class GRPOModule(PolicyModule):
    """Group-relative policy optimisation with verifiable rewards.

    Args:
        rollout: the sampler.
        reward: scores completions.
        loss: the objective.
        group_size: completions per prompt.
        advantage: computes advantages [N] from the rewards [N] of all ranks and `group_size`.
        num_updates: optimizer steps per rollout. In the first one, with old_logprobs="policy", the
            importance ratio is exactly 1.
        old_logprobs: denominator of the importance ratio. "policy": log-probabilities by the
            policy as it was at sampling (one more forward pass if there are several updates, or if
            the KL is part of the reward). "sampler": those reported by the sampler. The difference
            of the two is logged as `train/policy/sampler_gap`.
        resample_flat_groups: fills each step with groups whose rewards differ; None uses all
            groups.
        reference: "initial" keeps a frozen copy of the initial policy if the objective has a KL
            weight, and only then; None never does. Frozen weights are shared with the policy.
        reference_offload: keep the reference's unshared weights on the CPU between uses.
        micro_batch_completions: completions of a group per forward/backward pass; None: all.
            Fewer need less memory, but the prompt is recomputed for each part. The gradient is the
            same.
        scoring_fps: frame rate assumed when scoring log-probabilities; None: the true rate.
        preflight: compares sampler and trainer before the first step; None to skip it.
        policy, tokenizer, task, eval_rollout, micro_batch_size, optimizer, schedule,
            max_grad_norm, max_skipped_steps, component_lr, seed: see `PolicyModule`.

    Raises:
        ValueError: an argument is out of range, a KL weight has no reference, or
            `sampler_ratio_cap` is combined with old_logprobs="sampler".
    """

    def __init__(
        self,
        *,
        rollout: Rollout,
        reward: WeightedReward,
        loss: PolicyObjective,
        group_size: int,
        advantage: Advantage,
        num_updates: int,
        old_logprobs: OldLogprobs,
        resample_flat_groups: FlatGroupResampling | None,
        reference: Literal["initial"] | None,
        reference_offload: bool,
        micro_batch_completions: int | None,
        scoring_fps: float | None,
        preflight: Preflight | None,
        policy: Policy,
        tokenizer: Any,
        task: GroundingTask,
        eval_rollout: Rollout,
        micro_batch_size: int,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        max_grad_norm: float | None,
        max_skipped_steps: int,
        component_lr: Mapping[str, float | None],
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
            max_skipped_steps=max_skipped_steps,
            component_lr=component_lr,
            seed=seed,
        )
        _check(group_size, num_updates, old_logprobs, micro_batch_completions)
        if loss.sampler_ratio_cap is not None and old_logprobs == "sampler":
            raise ValueError(
                "objective.loss.sampler_ratio_cap: corrects for the sampler's log-probabilities, "
                "which objective.old_logprobs=sampler puts into the ratio already: use policy"
            )
        self.rollout = rollout
        self.reward = reward
        self.loss = loss
        self.group_size = group_size
        self.advantage = advantage
        self.num_updates = num_updates
        self.old_logprobs: OldLogprobs = old_logprobs
        self.resampling = resample_flat_groups
        self.reference_offload = reference_offload
        self.preflight = preflight
        self.scoring = Scoring(
            micro_batch_size=micro_batch_size,
            micro_batch_completions=micro_batch_completions,
            temperature=rollout.logprob_temperature,
            fps=scoring_fps,
        )
        self.reference: Policy | None = None
        refuse(reference_problems(loss.kl_coef, reference))
        if loss.needs_reference:
            self.reference = frozen_copy(self.policy)

    # -- sampling -------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        if self.resampling is not None:
            forget_logged(self.trainer)  # a batch without an update would log the last one again
        is_encoded = batch.video_features is not None
        with self.stage("vision"):
            batch = self.policy.encode_clips(batch)  # once, for all passes
        self._check_sampler(batch)
        rollout = self._sample(batch)
        with self.stage("reward"):
            answers = [self.task.parse(text) for text in rollout.texts]
            is_exact = [self.task.has_exact_format(text) for text in rollout.texts]
            rewards = self.reward(completions_of(rollout, answers, is_exact))
        said = Said(answers=answers, is_exact=is_exact, needs_segments=self.reward.reads_segments)
        self.log_step(rollout_metrics(rollout, said, rewards), show=("reward/total",))
        longest = rollout.completion_mask.sum(1).max().float()
        self.log_step({"completion/max_length": longest}, reduce="max")
        is_last = self.trainer.is_last_batch or batch_idx + 1 >= self.trainer.num_training_batches
        num_learnt = self._learn_from(rollout, rewards.total.to(self.device), is_last=is_last)
        return {
            "num_prompts": len(batch),
            "num_tokens": int(rollout.completion_mask.sum()),
            "num_flops": rollout_flops(
                self.policy,
                rollout,
                has_reference=self.reference is not None,
                is_encoded=is_encoded,
                num_updates=num_learnt,
            ),
            "rollout_rows": rollout_rows(rollout, said, rewards),
            "stage_s": self.stages.take(),
        }

    def _check_sampler(self, batch: PromptBatch) -> None:
        """Runs the preflight once, within the step, so that it has the precision of training."""
        if self.preflight is not None:
            self.preflight.run(
                policy=self.policy,
                rollout=self.rollout,
                tokenizer=self.tokenizer,
                prompts=batch,
                seed=self.seed,
            )
            self.preflight = None

    def _sample(self, batch: PromptBatch) -> RolloutBatch:
        stream = self.resampling.num_batches if self.resampling is not None else 0
        with self.stage("sampling"):
            return self.rollout.generate(
                policy=self.policy,
                tokenizer=self.tokenizer,
                prompts=batch,
                group_size=self.group_size,
                seed=self.step_seed(stream),
            )

    @property
    def is_between_steps(self) -> bool:
        return self.resampling is None or self.resampling.num_batches == 0

    # -- learning -------------------------------------------------------------------------------

    def _learn_from(self, rollout: RolloutBatch, rewards: Tensor, *, is_last: bool) -> int:
        """Takes the optimizer steps of a rollout; returns their number, 0 while a step still fills.

        `is_last`: the batch is the last of its epoch. Groups waiting for more are not saved in
        checkpoints, so they are then used as they are.
        """
        if self.resampling is not None:
            self.resampling.add(rollout, rewards)
            is_full = bool(self._least(self.resampling.is_full))
            if not (is_full or is_last or self.resampling.is_exhausted):
                return 0
            self.log_step(
                {
                    "sampling/batches": float(self.resampling.num_batches),
                    "sampling/kept_groups": self.resampling.kept_share,
                }
            )
            num = self._least(self.resampling.num_ready)
            rollout, rewards = self.resampling.take(num=num, pad_id=self.policy.pad_id)
        learnt = self._prepare(rollout, rewards)
        left = self.trainer.max_steps - self.global_step if self.trainer.max_steps > 0 else None
        num_updates = self.num_updates if left is None else min(self.num_updates, left)
        describe = partial(
            completion_rows,
            rollout.prompts.examples,
            rollout.texts,
            rewards.tolist(),
            group_size=self.group_size,
        )
        updates: list[dict[str, Tensor]] = []
        for _ in range(num_updates):
            totals = self._update(learnt, is_first=not updates)
            updates.append({**totals, **self.step_optimizer(totals["loss"], describe=describe)})
        if updates:
            self.log_step(update_metrics(updates), show=("loss",))
        return num_updates

    def _prepare(self, rollout: RolloutBatch, rewards: Tensor) -> Learnt:
        """Computes the inputs that the updates of a rollout share; scores it where needed."""
        parts = self.scoring.parts(rollout)
        with self.stage("reference"):
            references = self._reference_logprobs(rollout, parts)
        olds: dict[Part, Tensor] = {}
        is_kl_paid = bool(references) and self.loss.kl_in == "reward"
        if self.old_logprobs == "policy" and (self.num_updates > 1 or is_kl_paid):
            with self.stage("policy"):
                olds = self.scoring.frozen_logprobs(self.policy, rollout, parts)
        if is_kl_paid:
            penalty = kl_penalty(self.loss, rollout, references, olds)
            self.log_step({"reward/kl_penalty": penalty.mean()})
            rewards = rewards - penalty
        loss_mask = self.loss.loss_mask(rollout.completion_mask, rollout.is_finished)
        return Learnt(
            rollout=rollout,
            advantages=advantages_of_rank(
                self.advantage,
                rewards,
                group_size=self.group_size,
                world_size=self.trainer.world_size,
                rank=self.trainer.global_rank,
            ),
            references=references,
            olds=olds,
            loss_mask=loss_mask,
            denominator=self.mean_over_ranks(self.loss.denominator(loss_mask)),
            num_tokens=self.mean_over_ranks(loss_mask.sum()),
            group_lengths=mean_group_lengths(loss_mask, group_size=self.group_size),
        )

    def _update(self, learnt: Learnt, *, is_first: bool = True) -> dict[str, Tensor]:
        """Back-propagates the loss of a rollout; returns its metrics."""

        def loss_of(part: Part) -> LossOutput:
            logprobs, entropy = self.scoring.logprobs(self.policy, part.of(learnt.rollout))
            output = part_loss(
                self.loss,
                learnt,
                part,
                logprobs=logprobs,
                entropy=entropy,
                divides_by_sampler=self.old_logprobs == "sampler",
            )
            if is_first:  # before the policy has moved
                gap = sampler_gap(learnt, part, logprobs)
                return LossOutput(loss=output.loss, metrics={**output.metrics, "sampler_gap": gap})
            return output

        return self.backward_micro_batches(self.scoring.parts(learnt.rollout), loss_of)

    def _reference_logprobs(self, rollout: RolloutBatch, parts: list[Part]) -> dict[Part, Tensor]:
        """Reference log-probabilities [N, C] of each part; empty without a reference."""
        if self.reference is None:
            return {}
        used = in_use(
            self.reference, self.policy, device=self.device, offload=self.reference_offload
        )
        with used as reference:
            return self.scoring.frozen_logprobs(reference, rollout, parts)

    def _least(self, number: int) -> int:
        """The minimum of a number over all ranks."""
        if self.trainer.world_size == 1:
            return number
        gathered = self.all_gather(torch.tensor(float(number), device=self.device))
        assert isinstance(gathered, Tensor)
        return int(gathered.min())

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.resampling is not None and self.trainer.max_steps == -1:
            log.warning(
                "objective.resample_flat_groups: a step may take several batches, so the run has "
                "fewer steps than the learning-rate schedule spans (those of trainer.max_epochs): "
                "set trainer.max_steps where that matters"
            )

    def num_optimizer_steps(self) -> int | float:
        steps = super().num_optimizer_steps() * self.num_updates
        return min(steps, self.trainer.max_steps) if self.trainer.max_steps > 0 else steps


def _check(
    group_size: int, num_updates: int, old_logprobs: str, micro_batch_completions: int | None
) -> None:
    refuse(group_size_problems(group_size))
    if num_updates < 1:
        raise ValueError(f"objective.num_updates: expected at least 1, got {num_updates}")
    if old_logprobs not in ("policy", "sampler"):
        raise ValueError(
            f"objective.old_logprobs: expected policy or sampler, got {old_logprobs!r}"
        )
    if micro_batch_completions is not None and micro_batch_completions < 1:
        raise ValueError(
            "objective.micro_batch_completions: expected at least 1, or null, "
            f"got {micro_batch_completions}"
        )
