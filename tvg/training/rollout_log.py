"""Metrics and table rows of a step's rollouts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvg.core.parsing import ParsedAnswer
from tvg.types import RewardOutput, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class Said:
    """The answers parsed from N completions."""

    answers: list[ParsedAnswer]
    is_exact: list[bool]  # has exactly the requested format
    needs_segments: bool  # a reward reads segments; otherwise any answer block is enough

    def is_parsed(self) -> list[bool]:
        """Returns whether each completion contains the requested answer."""
        if self.needs_segments:
            return [answer.segment is not None for answer in self.answers]
        return [answer.answer is not None for answer in self.answers]


def reward_metrics(rewards: RewardOutput, group_size: int) -> dict[str, Tensor | float]:
    """Mean and spread of the total reward and of each part, and the share of flat groups."""
    metrics: dict[str, Tensor | float] = {}
    for name, values in {"total": rewards.total, **rewards.components}.items():
        groups = values.view(-1, group_size)
        metrics[f"reward/{name}"] = values.mean()
        metrics[f"reward/{name}_std"] = groups.std(dim=1).mean()
        # The spread is no test for this: the mean of equal numbers is rounded.
        is_flat = (groups == groups[:, :1]).all(dim=1)
        metrics[f"reward/{name}_flat_groups"] = is_flat.float().mean()
    return metrics


def rollout_metrics(
    rollout: RolloutBatch, said: Said, rewards: RewardOutput
) -> dict[str, Tensor | float]:
    """Metrics of a rollout's rewards and completions."""
    metrics = reward_metrics(rewards, rollout.group_size)
    metrics["completion/length"] = rollout.completion_mask.sum(1).float().mean()
    metrics["completion/truncated"] = 1 - rollout.is_finished.float().mean()
    metrics["completion/parse_rate"] = statistics.fmean(said.is_parsed())
    metrics["completion/exact_format_rate"] = statistics.fmean(said.is_exact)
    return metrics


def update_metrics(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor | float]:
    """Means over the updates of a rollout; the last value of learning rate and skipped steps."""
    names = dict.fromkeys(name for update in updates for name in update)
    means = {n: torch.stack([u[n] for u in updates if n in u]).mean() for n in names}
    means |= {n: updates[-1][n] for n in ("learning_rate", "skipped_steps") if n in names}
    own = ("loss", "grad_norm", "learning_rate", "skipped_steps")
    return {name if name in own else f"policy/{name}": value for name, value in means.items()}


def rollout_rows(rollout: RolloutBatch, said: Said, rewards: RewardOutput) -> list[dict[str, Any]]:
    """One plain row per completion, for tables; `group` is the prompt's index in the batch."""
    rows = []
    lengths = rollout.completion_mask.sum(1).tolist()
    finished = rollout.is_finished.tolist()
    parsed = said.is_parsed()
    for n, (text, answer) in enumerate(zip(rollout.texts, said.answers, strict=True)):
        example = rollout.prompts.examples[n // rollout.group_size]
        rows.append(
            {
                "qid": example.qid,
                "query": example.query,
                "truth": list(example.segment) if example.segment else None,
                "segment": list(answer.segment) if answer.segment else None,
                "reward": float(rewards.total[n]),
                **{
                    f"reward_{name}": float(values[n])
                    for name, values in rewards.components.items()
                },
                "num_tokens": lengths[n],
                "parsed": parsed[n],
                "exact": said.is_exact[n],
                "finished": finished[n],
                "group": n // rollout.group_size,
                "text": text,
            }
        )
    return rows
