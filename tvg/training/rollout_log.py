"""Parses rollouts, and builds the inputs of rewards, metrics and table rows from them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvg.core.parsing import ParsedAnswer
from tvg.reward.base import Completions
from tvg.task.protocol import Task
from tvg.types import GroundingExample, RewardOutput, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class ParsedCompletions:
    """N completions as a task parsed them; row n answers `examples[n]`."""

    examples: list[GroundingExample]
    answers: list[ParsedAnswer]
    is_parsed: list[bool]  # contains an answer
    is_exact: list[bool]  # has exactly the requested format
    columns: list[dict[str, Any]]  # table columns with truth and answer


def parse_completions(task: Task, rollout: RolloutBatch) -> ParsedCompletions:
    """Parses every completion of a rollout."""
    examples = [e for e in rollout.prompts.examples for _ in range(rollout.group_size)]
    answers = [task.parse(text) for text in rollout.texts]
    return ParsedCompletions(
        examples=examples,
        answers=answers,
        is_parsed=[task.is_parsed(answer) for answer in answers],
        is_exact=[task.has_exact_format(text) for text in rollout.texts],
        columns=[task.columns(e, answer) for e, answer in zip(examples, answers, strict=True)],
    )


def reward_inputs(rollout: RolloutBatch, parsed: ParsedCompletions) -> Completions:
    """Converts a rollout to the input of the rewards."""
    size = rollout.group_size
    return Completions(
        texts=rollout.texts,
        answers=parsed.answers,
        truths=[example.segment for example in parsed.examples],
        durations_s=rollout.prompts.duration_s.repeat_interleave(size).tolist(),
        examples=parsed.examples,
        num_tokens=rollout.completion_mask.sum(1).tolist(),
        is_finished=rollout.is_finished.tolist(),
        is_exact=parsed.is_exact,
        group_size=size,
    )


def reward_metrics(rewards: RewardOutput, group_size: int) -> dict[str, Tensor | float]:
    """Returns mean, mean std in groups, and share of flat groups, per reward and for the total."""
    metrics: dict[str, Tensor | float] = {}
    for name, values in {"total": rewards.total, **rewards.components}.items():
        groups = values.view(-1, group_size)
        metrics[f"reward/{name}"] = values.mean()
        metrics[f"reward/{name}_std"] = groups.std(dim=1).mean()
        # Not std == 0: rounding of the mean makes the std of equal values nonzero.
        is_flat = (groups == groups[:, :1]).all(dim=1)
        metrics[f"reward/{name}_flat_groups"] = is_flat.float().mean()
    return metrics


def rollout_metrics(
    rollout: RolloutBatch, parsed: ParsedCompletions, rewards: RewardOutput
) -> dict[str, Tensor | float]:
    """Returns metrics of a rollout's rewards and completions."""
    metrics = reward_metrics(rewards, rollout.group_size)
    metrics["completion/length"] = rollout.completion_mask.sum(1).float().mean()
    metrics["completion/truncated"] = 1 - rollout.is_finished.float().mean()
    metrics["completion/parse_rate"] = statistics.fmean(parsed.is_parsed)
    metrics["completion/exact_format_rate"] = statistics.fmean(parsed.is_exact)
    return metrics


def update_metrics(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor | float]:
    """Returns means over a rollout's updates, and the last learning rate and skipped steps."""
    names = dict.fromkeys(name for update in updates for name in update)
    means = {n: torch.stack([u[n] for u in updates if n in u]).mean() for n in names}
    means |= {n: updates[-1][n] for n in ("learning_rate", "skipped_steps") if n in names}
    own = ("loss", "grad_norm", "learning_rate", "skipped_steps")
    return {name if name in own else f"policy/{name}": value for name, value in means.items()}


def rollout_rows(
    rollout: RolloutBatch, parsed: ParsedCompletions, rewards: RewardOutput
) -> list[dict[str, Any]]:
    """Returns one table row per completion; `group` is the prompt's index in the batch."""
    lengths = rollout.completion_mask.sum(1).tolist()
    finished = rollout.is_finished.tolist()
    return [
        {
            "qid": example.qid,
            "query": example.query,
            **parsed.columns[n],
            "reward": float(rewards.total[n]),
            **{f"reward_{name}": float(values[n]) for name, values in rewards.components.items()},
            "num_tokens": lengths[n],
            "parsed": parsed.is_parsed[n],
            "exact": parsed.is_exact[n],
            "finished": finished[n],
            "group": n // rollout.group_size,
            "text": rollout.texts[n],
        }
        for n, example in enumerate(parsed.examples)
    ]
