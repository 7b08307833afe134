"""Inputs of policy updates: a rollout, its advantages, and log-probabilities to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tvg.core.parsing import ParsedAnswer
from tvg.objective.policy_gradient import PolicyObjective
from tvg.reward.base import Completions
from tvg.training.scoring import Part
from tvg.types import LossOutput, RolloutBatch

Advantage = Callable[..., Tensor]  # rewards [N], group_size -> [N]
Scored = Mapping[Part, Tensor]  # log-probabilities of each part, [N of the part, C]


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """The inputs that all updates of a rollout share."""

    rollout: RolloutBatch
    advantages: Tensor  # [N]
    references: Scored  # empty without a reference
    olds: Scored  # by the policy at sampling; empty if not computed separately
    loss_mask: Tensor  # [N, C], nonzero on tokens that carry loss
    denominator: Tensor  # of the loss, for the whole step, like num_tokens
    num_tokens: Tensor  # in the loss mask
    group_lengths: Tensor  # [N], mean number of tokens with loss in each completion's group


def completions_of(
    rollout: RolloutBatch, answers: list[ParsedAnswer], is_exact: list[bool]
) -> Completions:
    """Converts a rollout to the input of the rewards.

    Args:
        rollout: N completions.
        answers: [N] the parsed answers.
        is_exact: [N] whether each completion has exactly the requested format.

    Raises:
        ValueError: an example has no true segment.
    """
    size = rollout.group_size
    examples = [example for example in rollout.prompts.examples for _ in range(size)]
    truths = []
    for example in examples:
        if example.segment is None:
            raise ValueError(f"{example.qid}: reinforcement training needs a true segment")
        truths.append(example.segment)
    return Completions(
        texts=rollout.texts,
        answers=answers,
        truths=truths,
        durations_s=rollout.prompts.duration_s.repeat_interleave(size).tolist(),
        examples=examples,
        num_tokens=rollout.completion_mask.sum(1).tolist(),
        is_finished=rollout.is_finished.tolist(),
        is_exact=is_exact,
        group_size=size,
    )


def part_loss(
    loss: PolicyObjective,
    learnt: Learnt,
    part: Part,
    *,
    logprobs: Tensor,
    entropy: Tensor,
    divides_by_sampler: bool,
) -> LossOutput:
    """Computes a part's share of the loss of a step.

    Args:
        loss: the objective.
        learnt: the inputs of the whole rollout.
        part: the part of the rollout.
        logprobs: [N of the part, C] by the policy, with gradient.
        entropy: [N of the part, C].
        divides_by_sampler: the old log-probabilities are the sampler's; False: the policy's.
    """
    mine = part.of(learnt.rollout)
    rows = part.rows(learnt.rollout.group_size)
    mask = learnt.loss_mask[rows.to(learnt.loss_mask.device)]
    at_sampling = learnt.olds.get(part, logprobs.detach())
    return loss(
        logprobs=logprobs,
        old_logprobs=mine.sampler_logprobs if divides_by_sampler else at_sampling,
        ref_logprobs=learnt.references.get(part),
        sampler_logprobs=mine.sampler_logprobs,
        policy_old_logprobs=at_sampling,
        entropy=entropy,
        advantages=learnt.advantages[rows.to(learnt.advantages.device)],
        loss_mask=mask,
        denominator=learnt.denominator,
        num_tokens=learnt.num_tokens,
        group_lengths=learnt.group_lengths[rows.to(learnt.group_lengths.device)],
    )


def sampler_gap(learnt: Learnt, part: Part, logprobs: Tensor) -> Tensor:
    """A part's share of the mean absolute difference of sampler and policy log-probs, in nats.

    Args:
        learnt: the inputs of the whole rollout.
        part: the part of the rollout.
        logprobs: [N of the part, C] by the policy as it was at sampling.
    """
    rows = part.rows(learnt.rollout.group_size)
    mask = learnt.loss_mask[rows.to(learnt.loss_mask.device)]
    gap = (logprobs.detach() - part.of(learnt.rollout).sampler_logprobs).abs()
    return (gap * mask).sum() / learnt.num_tokens.clamp(min=1)


def kl_penalty(
    loss: PolicyObjective, rollout: RolloutBatch, references: Scored, olds: Scored
) -> Tensor:
    """Per-completion KL penalty on the reward: [N].

    Args:
        loss: the objective, with the KL estimator and its weight.
        rollout: as sampled.
        references: log-probabilities by the reference, for all parts.
        olds: log-probabilities by the policy; for missing parts, the sampler's are used.
    """
    penalty = torch.zeros(len(rollout.completion_ids), device=rollout.completion_ids.device)
    for part, reference in references.items():
        mine = part.of(rollout)
        old = olds.get(part, mine.sampler_logprobs)
        rows = part.rows(rollout.group_size).to(penalty.device)
        penalty[rows] = loss.reward_penalty(old, reference, mine.completion_mask).to(penalty)
    return penalty


def advantages_of_rank(
    advantage: Advantage, rewards: Tensor, *, group_size: int, world_size: int, rank: int
) -> Tensor:
    """Advantages [N] of this rank's completions, computed from the rewards of all ranks."""
    if world_size == 1:
        return advantage(rewards, group_size=group_size)
    gathered: list[Tensor] = [rewards] * world_size
    torch.distributed.all_gather_object(gathered, rewards.cpu())
    start = sum(len(other) for other in gathered[:rank])
    advantages = advantage(torch.cat(gathered), group_size=group_size)
    return advantages[start : start + len(rewards)].to(rewards.device)
