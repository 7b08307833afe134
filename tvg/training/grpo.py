"""GRPO and its variants: sample groups of completions, score them, and update the policy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from tvg.core.limits import group_size_problems, reference_problems, refuse
from tvg.model.flops import rollout_flops
from tvg.model.policy import Policy
from tvg.objective.policy_gradient import PolicyObjective
from tvg.reward.weighted import WeightedReward
from tvg.rollout.engine import RolloutEngine, awake
from tvg.task.protocol import Task
from tvg.training.lightning_internals import forget_logged
from tvg.training.nonfinite import completion_rows
from tvg.training.out_of_memory import retried
from tvg.training.policy_module import OptimizerFactory, PolicyModule, ScheduleFactory
from tvg.training.preflight import Preflight
from tvg.training.ranks import gather_objects, least_over_ranks
from tvg.training.reference import frozen_copy, in_use
from tvg.training.resampling import FlatGroupResampling
from tvg.training.rollout_log import (
    parse_completions,
    reward_inputs,
    rollout_metrics,
    rollout_rows,
    update_metrics,
)
from tvg.training.step_output import StepOutput
from tvg.training.train_batch import (
    Advantage,
    MicroBatch,
    Scorer,
    TrainBatch,
    advantages_of_rank,
    kl_penalty,
    make_train_batch,
    micro_batch_loss,
    sampler_gap,
)
from tvg.types import LossOutput, PromptBatch, RolloutBatch

log = logging.getLogger(__name__)

OldLogprobs = Literal["policy", "sampler"]


class GRPOModule(PolicyModule):
    """Group-relative policy optimisation with verifiable rewards.

    A step, from top to bottom (`step`, then `update`):

        prompts -> rollout (G completions each) -> parsed answers -> rewards -> advantages
                -> for each update: for each micro-batch: log-probs -> loss -> gradients
                                    -> optimizer

    Args:
        rollout: samples the completions; validation uses greedy decoding.
        reward: scores completions.
        loss: the objective.
        group_size: completions per prompt.
        advantage: computes advantages [N] from the rewards [N] of all ranks and `group_size`.
        num_updates: optimizer steps per rollout. In the first step, with old_logprobs="policy", the
            importance ratio is exactly 1.
        old_logprobs: denominator of the importance ratio. "policy": log-probabilities by the
            policy as it was at sampling (one more forward pass if there are several updates, or if
            the KL is part of the reward). "sampler": log-probabilities reported by the sampler. The
            difference is logged as `train/policy/sampler_gap`.
        resample_flat_groups: fills each step with groups whose rewards differ; None uses all
            groups.
        reference: "initial" keeps a frozen copy of the initial policy if the objective has a KL
            weight; None keeps no copy. The copy shares frozen weights with the policy.
        reference_offload: keep the reference's unshared weights on the CPU between uses, in pinned
            memory if there is a GPU.
        reference_dtype: "bfloat16" keeps the reference's linear layers in bfloat16; None: as the
            policy's.
        micro_batch_completions: completions of a group per forward/backward pass; None: all. A
            smaller number needs less memory, but recomputes the prompt in every pass. The gradient
            is the same.
        scoring_fps: frame rate assumed when scoring log-probabilities; None: the true rate.
        preflight: compares sampler and trainer before the first step; None to skip it.
        policy, tokenizer, task, micro_batch_size, optimizer, schedule,
            max_grad_norm, max_skipped_steps, component_lr, seed: see `PolicyModule`.

    Raises:
        ValueError: an argument is out of range, the KL weight needs a reference but there is none,
            or `sampler_ratio_cap` is combined with old_logprobs="sampler".
    """

    def __init__(
        self,
        *,
        rollout: RolloutEngine,
        reward: WeightedReward,
        loss: PolicyObjective,
        group_size: int,
        advantage: Advantage,
        num_updates: int,
        old_logprobs: OldLogprobs,
        resample_flat_groups: FlatGroupResampling | None,
        reference: Literal["initial"] | None,
        reference_offload: bool,
        reference_dtype: Literal["bfloat16"] | None = None,
        micro_batch_completions: int | None,
        scoring_fps: float | None,
        preflight: Preflight | None,
        policy: Policy,
        tokenizer: Any,
        task: Task,
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
            rollout=rollout,
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
                "objective.loss.sampler_ratio_cap: cannot be combined with "
                "objective.old_logprobs=sampler, whose ratio already contains this correction: "
                "set objective.old_logprobs=policy"
            )
        self.reward = reward
        self.loss = loss
        self.group_size = group_size
        self.advantage = advantage
        self.num_updates = num_updates
        self.old_logprobs: OldLogprobs = old_logprobs
        self.resampling = resample_flat_groups
        self.reference_offload = reference_offload
        self.preflight = preflight
        self.scorer = Scorer(
            micro_batch_size=micro_batch_size,
            micro_batch_completions=micro_batch_completions,
            temperature=rollout.sampling.logprob_temperature,
            fps=scoring_fps,
        )
        self.reference: Policy | None = None
        refuse(reference_problems(loss.kl_coef, reference))
        if loss.needs_reference:
            dtype = getattr(torch, reference_dtype) if reference_dtype is not None else None
            copied = frozen_copy(self.policy, dtype=dtype, pin=reference_offload)
            # As a submodule, it would be moved to the GPU with the policy.
            (object.__setattr__ if reference_offload else setattr)(self, "reference", copied)

    def policies(self) -> list[Policy]:
        return [*super().policies(), *([] if self.reference is None else [self.reference])]

    # -- a step ---------------------------------------------------------------------------------

    def step(self, batch: PromptBatch, *, is_last_batch: bool) -> StepOutput:
        """Samples and scores completions; updates the policy once enough groups are collected."""
        if self.resampling is not None:
            # Otherwise, a batch without an update would log the metrics of the last update again.
            forget_logged(self.trainer)
        with self.policy.gathered():  # sharded weights are gathered once for clips and tokens
            with self.stage("vision"):
                prompts = self.policy.encode_clips(batch)  # once, for all passes
            with self.stage("sampling"):
                rollout = self._sample(prompts)
        with self.stage("reward"):
            parsed = parse_completions(self.task, rollout)
            rewards = self.reward(reward_inputs(rollout, parsed))
        metrics = rollout_metrics(rollout, parsed, rewards)
        lengths = rollout.completion_mask.sum(1)
        groups, found = self._collect(
            rollout, rewards.total.to(self.device), is_last_batch=is_last_batch
        )
        metrics |= found
        num_updates = 0
        if groups is not None:
            num_updates, found = self._learn_from(*groups)
            metrics |= found
        return StepOutput(
            num_prompts=len(batch),
            num_tokens=int(lengths.sum()),
            metrics=metrics,
            max_metrics={"completion/max_length": lengths.max().float()},
            shown=("reward/total", "loss"),
            num_flops=rollout_flops(
                self.policy,
                rollout,
                has_reference=self.reference is not None,
                is_encoded=batch.video_features is not None,
                num_updates=num_updates,
            ),
            rows=rollout_rows(rollout, parsed, rewards),
            stage_s=self.stages.take(),
        )

    def _sample(self, prompts: PromptBatch) -> RolloutBatch:
        stream = self.resampling.num_batches if self.resampling is not None else 0
        with awake(self.rollout):
            if self.preflight is not None:  # inside a step, so that training's precision applies
                self.preflight.run(
                    policy=self.policy, rollout=self.rollout, prompts=prompts, seed=self.seed
                )
                self.preflight = None
            return self.rollout.generate(
                prompts, group_size=self.group_size, seed=self.step_seed(stream)
            )

    def _collect(
        self, rollout: RolloutBatch, rewards: Tensor, *, is_last_batch: bool
    ) -> tuple[tuple[RolloutBatch, Tensor] | None, dict[str, Tensor | float]]:
        """Returns ((groups, rewards [N]) to train on, metrics); None: sample more groups first.

        Args:
            rollout: the groups of this batch.
            rewards: [N], total rewards of their completions.
            is_last_batch: the batch is the last of its epoch. Checkpoints do not contain collected
                groups, so all collected groups are used at the end of an epoch.
        """
        if self.resampling is None:
            return (rollout, rewards), {}
        self.resampling.add(rollout, rewards)
        is_full = bool(self._least(self.resampling.is_full))
        if not (is_full or is_last_batch or self.resampling.is_exhausted):
            return None, {}
        metrics: dict[str, Tensor | float] = {
            "sampling/batches": float(self.resampling.num_batches),
            "sampling/kept_groups": self.resampling.kept_share,
        }
        num = self._least(self.resampling.num_ready)
        return self.resampling.take(num=num, pad_id=self.policy.pad_id), metrics

    def _least(self, number: int) -> int:
        return least_over_ranks(self.trainer, number, device=self.device)

    @property
    def is_between_steps(self) -> bool:
        return self.resampling is None or self.resampling.num_batches == 0

    def _learn_from(
        self, rollout: RolloutBatch, rewards: Tensor
    ) -> tuple[int, dict[str, Tensor | float]]:
        """Computes the optimizer steps of a rollout; returns their number and the metrics."""
        batch = self.prepare(rollout, rewards)
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
            totals = self.update(batch, is_first=not updates)
            updates.append({**totals, **self.step_optimizer(totals["loss"], describe=describe)})
        return num_updates, {**batch.metrics, **(update_metrics(updates) if updates else {})}

    def prepare(self, rollout: RolloutBatch, rewards: Tensor) -> TrainBatch:
        """Computes the inputs that the updates of a rollout share.

        Args:
            rollout: N completions.
            rewards: [N], total rewards of the completions.
        """
        metrics: dict[str, Tensor | float] = {}
        micro_batches = retried(self, lambda: self._scored(rollout))
        if self._is_kl_paid:
            penalty = kl_penalty(self.loss, micro_batches, num_completions=len(rewards))
            metrics["reward/kl_penalty"] = penalty.mean()
            rewards = rewards - penalty
        advantages = advantages_of_rank(
            self.advantage,
            gather_objects(self.trainer, rewards.cpu()),
            group_size=self.group_size,
            rank=self.trainer.global_rank,
        )
        return make_train_batch(
            micro_batches,
            advantages=advantages.to(rewards.device),
            rollout=rollout,
            loss=self.loss,
            mean_over_ranks=self.mean_over_ranks,
            metrics=metrics,
        )

    @property
    def _is_kl_paid(self) -> bool:
        """Whether the KL to the reference reduces the rewards."""
        return self.reference is not None and self.loss.kl_in == "reward"

    def _scored(self, rollout: RolloutBatch) -> list[MicroBatch]:
        """Returns the micro-batches with the log-probabilities that all updates share."""
        micro_batches = self.scorer.split(rollout)
        if self.reference is not None:
            with self.stage("reference"):
                micro_batches = self._with_reference(self.reference, micro_batches)
        if self.old_logprobs == "policy" and (self.num_updates > 1 or self._is_kl_paid):
            with self.stage("policy"):
                scored = self.scorer.frozen_logprobs(self.policy, micro_batches)
            micro_batches = [
                replace(each, old_logprobs=logprobs)
                for each, logprobs in zip(micro_batches, scored, strict=True)
            ]
        return micro_batches

    def shrink_passes(self) -> str | None:
        if (keys := super().shrink_passes()) is not None:
            self.scorer = replace(self.scorer, micro_batch_size=self.micro_batch_size)
            return keys
        size = self.scorer.micro_batch_completions or self.group_size
        if size == 1:
            return None
        self.scorer = replace(self.scorer, micro_batch_completions=size // 2)
        return f"objective.micro_batch_size=1 objective.micro_batch_completions={size // 2}"

    def _with_reference(
        self, reference: Policy, micro_batches: list[MicroBatch]
    ) -> list[MicroBatch]:
        """Returns the micro-batches with the reference's log-probabilities."""
        used = in_use(reference, self.policy, device=self.device, offload=self.reference_offload)
        with used as scoring:
            scored = self.scorer.frozen_logprobs(scoring, micro_batches)
        return [
            replace(each, ref_logprobs=logprobs)
            for each, logprobs in zip(micro_batches, scored, strict=True)
        ]

    def update(self, batch: TrainBatch, *, is_first: bool = True) -> dict[str, Tensor]:
        """Back-propagates the loss of a batch; returns its metrics.

        Args:
            batch: the complete step.
            is_first: the policy has not been updated since it sampled.
        """

        def loss_of(micro_batch: MicroBatch) -> LossOutput:
            logprobs, entropy = self.scorer.logprobs(self.policy, micro_batch.rollout)
            output = micro_batch_loss(
                self.loss,
                batch,
                micro_batch,
                logprobs=logprobs,
                entropy=entropy,
                divides_by_sampler=self.old_logprobs == "sampler",
            )
            if not is_first:
                return output
            gap = sampler_gap(batch, micro_batch, logprobs)
            return LossOutput(loss=output.loss, metrics={**output.metrics, "sampler_gap": gap})

        return self.backward_step(lambda: self.scorer.in_passes(batch.micro_batches), loss_of)

    # -- the run --------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.resampling is not None and self.trainer.max_steps == -1:
            log.warning(
                "objective.resample_flat_groups: a step may need several batches, so the run may "
                "stop before the learning-rate schedule ends, which is computed from "
                "trainer.max_epochs; set trainer.max_steps to avoid this"
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
