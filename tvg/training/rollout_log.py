"""What is told about a step's rollouts: numbers for the logs, rows for tables."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tvg.core.parsing import ParsedAnswer
from tvg.types import RewardOutput, RolloutBatch


def reward_metrics(rewards: RewardOutput, group_size: int) -> dict[str, Tensor | float]:
    """Mean and spread of the total and of each part, and the share of groups that teach nothing."""
    metrics: dict[str, Tensor | float] = {}
    for name, values in {"total": rewards.total, **rewards.parts}.items():
        groups = values.view(-1, group_size)
        metrics[f"reward/{name}"] = values.mean()
        metrics[f"reward/{name}_std"] = groups.std(dim=1).mean()
        # Not by the spread: the mean of equal numbers is rounded.
        is_flat = (groups == groups[:, :1]).all(dim=1)
        metrics[f"reward/{name}_flat_groups"] = is_flat.float().mean()
    return metrics


def rollout_rows(
    rollout: RolloutBatch, answers: list[ParsedAnswer], rewards: RewardOutput
) -> list[dict[str, Any]]:
    """One plain row a completion, for tables; `group` is its prompt's place in the batch."""
    rows = []
    lengths = rollout.completion_mask.sum(1).tolist()
    finished = rollout.is_finished.tolist()
    for n, (text, answer) in enumerate(zip(rollout.texts, answers, strict=True)):
        example = rollout.prompts.examples[n // rollout.group_size]
        rows.append(
            {
                "qid": example.qid,
                "query": example.query,
                "truth": list(example.segment) if example.segment else None,
                "segment": list(answer.segment) if answer.segment else None,
                "reward": float(rewards.total[n]),
                **{f"reward_{name}": float(values[n]) for name, values in rewards.parts.items()},
                "num_tokens": lengths[n],
                "finished": finished[n],
                "group": n // rollout.group_size,
                "text": text,
            }
        )
    return rows
