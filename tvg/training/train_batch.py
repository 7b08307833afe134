"""Splits a rollout into micro-batches and adds the inputs of their losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tvg.core.reduction import mean_group_lengths
from tvg.model.policy import Policy
from tvg.objective.policy_gradient import PolicyObjective
from tvg.training.step_output import Metrics
from tvg.types import LossOutput, RolloutBatch

Advantage = Callable[..., Tensor]  # rewards [N], group_size -> [N]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Completions that are scored in one pass: some prompts, with some completions of each.

    n is the number of these completions; C is the length of the rollout's longest completion.
    """

    rollout: RolloutBatch  # n completions and their prompts
    rows: Tensor  # int64 [n], indices of the completions in the rollout
    ref_logprobs: Tensor | None = None  # [n, C] by the reference; None: no reference
    # [n, C] by the policy at sampling. None: not computed; the loss then uses the policy's current
    # log-probabilities, and the KL penalty uses the sampler's.
    old_logprobs: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """The inputs that all updates of a rollout share."""

    micro_batches: list[MicroBatch]
    advantages: Tensor  # [N]
    loss_mask: Tensor  # [N, C], nonzero on tokens that carry loss
    group_lengths: Tensor  # [N], mean number of tokens with loss in each completion's group
    # scalars: each is summed over this rank's part of the step and then averaged over the ranks
    denominator: Tensor  # number by which the summed loss is divided
    num_tokens: Tensor  # number of tokens in the loss mask
    metrics: Metrics = field(default_factory=dict)

    def rows_of(self, values: Tensor, micro_batch: MicroBatch) -> Tensor:
        """Returns a micro-batch's rows of a tensor [N, ...] of the rollout."""
        return values[micro_batch.rows.to(values.device)]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Computes a policy's log-probabilities of completions, in micro-batches.

    Attributes:
        micro_batch_size: prompts per pass through the model.
        micro_batch_completions: completions of a group per pass; None: all.
        temperature: temperature of the sampler.
        fps: frame rate assumed when scoring; None: the true rate. A value of 2 reproduces a bug of
            the Time-R1 release, which scores at 2 for every sampling rate.
    """

    micro_batch_size: int
    micro_batch_completions: int | None
    temperature: float
    fps: float | None

    def split(self, rollout: RolloutBatch) -> list[MicroBatch]:
        """Splits a rollout into micro-batches: some prompts with all or some completions."""
        group, num = rollout.group_size, len(rollout.prompts)
        size = self.micro_batch_completions or group
        completions = [range(i, min(i + size, group)) for i in range(0, group, size)]
        step = self.micro_batch_size
        prompts = [range(i, min(i + step, num)) for i in range(0, num, step)]
        return [
            MicroBatch(
                rollout=rollout.select(some, mine), rows=rollout.rows_of(some, mine).flatten()
            )
            for some in prompts
            for mine in completions
        ]

    def logprobs(self, policy: Policy, rollout: RolloutBatch) -> tuple[Tensor, Tensor]:
        """Returns log-probability and entropy of every completion token, both [N, C]."""
        prompts = rollout.prompts
        if self.fps is not None:
            prompts = replace(prompts, sampled_fps=torch.full_like(prompts.sampled_fps, self.fps))
        out: tuple[Tensor, Tensor] = policy(
            prompts,
            rollout.completion_ids,
            rollout.completion_mask,
            group_size=rollout.group_size,
            temperature=self.temperature,
        )
        return out

    def frozen_logprobs(self, policy: Policy, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Returns log-probabilities of each micro-batch, [n, C], without a gradient."""
        with torch.no_grad():
            return [self.logprobs(policy, each.rollout)[0] for each in micro_batches]


def make_train_batch(
    micro_batches: list[MicroBatch],
    *,
    advantages: Tensor,
    rollout: RolloutBatch,
    loss: PolicyObjective,
    mean_over_ranks: Callable[[Tensor], Tensor],
    metrics: Metrics,
) -> TrainBatch:
    """Adds loss mask and denominators to the micro-batches of a rollout.

    Args:
        micro_batches: all micro-batches of the rollout.
        advantages: [N].
        rollout: the complete rollout.
        loss: the objective, which defines the loss mask and the denominator.
        mean_over_ranks: computes the mean of a count over all ranks.
        metrics: metrics computed while the batch was prepared.
    """
    loss_mask = loss.loss_mask(rollout.completion_mask, rollout.is_finished)
    return TrainBatch(
        micro_batches=micro_batches,
        advantages=advantages,
        loss_mask=loss_mask,
        group_lengths=mean_group_lengths(loss_mask, group_size=rollout.group_size),
        denominator=mean_over_ranks(loss.denominator(loss_mask)),
        num_tokens=mean_over_ranks(loss_mask.sum()),
        metrics=metrics,
    )


def micro_batch_loss(
    loss: PolicyObjective,
    batch: TrainBatch,
    micro_batch: MicroBatch,
    *,
    logprobs: Tensor,
    entropy: Tensor,
    divides_by_sampler: bool,
) -> LossOutput:
    """Computes a micro-batch's share of the loss of a step.

    Args:
        loss: the objective.
        batch: the batch that the micro-batch belongs to.
        micro_batch: n completions.
        logprobs: [n, C], log-probabilities by the policy, with gradient.
        entropy: [n, C].
        divides_by_sampler: the ratio's denominator uses the sampler's log-probabilities; False:
            the policy's.
    """
    sampler_logprobs = micro_batch.rollout.sampler_logprobs
    old_logprobs = micro_batch.old_logprobs
    if old_logprobs is None:
        old_logprobs = logprobs.detach()
    return loss(
        logprobs=logprobs,
        old_logprobs=sampler_logprobs if divides_by_sampler else old_logprobs,
        ref_logprobs=micro_batch.ref_logprobs,
        sampler_logprobs=sampler_logprobs,
        policy_old_logprobs=old_logprobs,
        entropy=entropy,
        advantages=batch.rows_of(batch.advantages, micro_batch),
        loss_mask=batch.rows_of(batch.loss_mask, micro_batch),
        denominator=batch.denominator,
        num_tokens=batch.num_tokens,
        group_lengths=batch.rows_of(batch.group_lengths, micro_batch),
    )


def sampler_gap(batch: TrainBatch, micro_batch: MicroBatch, logprobs: Tensor) -> Tensor:
    """Returns a micro-batch's share of the mean |policy - sampler| of log-probs, in nats per token.

    Args:
        batch: the batch that the micro-batch belongs to.
        micro_batch: n completions.
        logprobs: [n, C], log-probabilities by the policy that sampled.
    """
    gap = (logprobs.detach() - micro_batch.rollout.sampler_logprobs).abs()
    mask = batch.rows_of(batch.loss_mask, micro_batch)
    return (gap * mask).sum() / batch.num_tokens.clamp(min=1)


def kl_penalty(
    loss: PolicyObjective, micro_batches: Sequence[MicroBatch], *, num_completions: int
) -> Tensor:
    """Returns the KL penalty on the reward of each completion: [N].

    Args:
        loss: the objective, with the KL estimator and its weight.
        micro_batches: all micro-batches of a rollout, with `ref_logprobs`. If `old_logprobs` is
            None, the sampler's log-probabilities are used.
        num_completions: N.
    """
    device = micro_batches[0].rollout.completion_ids.device
    penalty = torch.zeros(num_completions, device=device)
    for each in micro_batches:
        assert each.ref_logprobs is not None
        old = each.rollout.sampler_logprobs if each.old_logprobs is None else each.old_logprobs
        mask = each.rollout.completion_mask
        penalty[each.rows.to(device)] = loss.reward_penalty(old, each.ref_logprobs, mask).to(
            penalty
        )
    return penalty


def advantages_of_rank(
    advantage: Advantage, rewards: list[Tensor], *, group_size: int, rank: int
) -> Tensor:
    """Returns the advantages [N] of one rank's completions, given the rewards of all ranks.

    Args:
        advantage: computes advantages from rewards.
        rewards: for each rank, the rewards of its completions.
        group_size: G.
        rank: this rank.
    """
    start = sum(len(other) for other in rewards[:rank])
    mine = rewards[rank]
    advantages = advantage(
        torch.cat([other.to(mine.device) for other in rewards]), group_size=group_size
    )
    return advantages[start : start + len(mine)]
