"""Dynamic sampling: fills each optimizer step with groups whose rewards differ."""

from __future__ import annotations

import torch
from torch import Tensor

from tvg.core.batches import join_rollouts
from tvg.types import RolloutBatch


class FlatGroupResampling:
    """Collects groups whose rewards differ, over several batches, until they fill one batch.

    A group of equal rewards has zero advantages and would only dilute the step. As in DAPO
    (arXiv 2503.14476, section 3.2), such groups are left out and further prompts are sampled
    instead. Groups beyond a full batch are also left out, so all full steps have the same number
    of groups, and no group is carried over to the next step.

    Args:
        max_batches: maximum number of batches sampled for one step. After these, or at the end of
            an epoch, the step uses the groups found so far, or one flat group if it has found none.

    Raises:
        ValueError: `max_batches` is below 1.
    """

    def __init__(self, *, max_batches: int) -> None:
        if max_batches < 1:
            raise ValueError(
                "objective.resample_flat_groups.max_batches: expected at least 1, "
                f"got {max_batches}"
            )
        self.max_batches = max_batches
        self.clear()

    def clear(self) -> None:
        """Discards all collected groups."""
        self.num_batches = 0
        self.num_groups = 0  # sampled groups, including flat ones
        self._wanted = 0
        self._kept: list[tuple[RolloutBatch, Tensor]] = []
        self._flat: list[tuple[RolloutBatch, Tensor]] = []  # the first flat group, if any

    def add(self, rollout: RolloutBatch, rewards: Tensor) -> None:
        """Adds a batch of groups.

        Args:
            rollout: B prompts with G completions each.
            rewards: [N] total rewards.
        """
        size = rollout.group_size
        self.num_batches += 1
        self.num_groups += len(rollout.prompts)
        self._wanted = max(self._wanted, len(rollout.prompts))
        for number, group in enumerate(rewards.view(-1, size)):
            is_flat = bool(group.max() == group.min())
            if is_flat and self._flat:
                continue
            part = rollout.select(range(number, number + 1), range(size))
            (self._flat if is_flat else self._kept).append((part, group))

    @property
    def is_full(self) -> bool:
        """True if this rank has collected a full batch of groups."""
        return len(self._kept) >= self._wanted

    @property
    def is_exhausted(self) -> bool:
        """True if no further batch may be sampled for this step; equal on every rank."""
        return self.num_batches >= self.max_batches

    @property
    def num_ready(self) -> int:
        """Number of groups that this rank can use now; 1 if it has only a flat group."""
        return max(min(len(self._kept), self._wanted), 1)

    @property
    def kept_share(self) -> float:
        """Share of the sampled groups whose rewards differ."""
        return len(self._kept) / max(self.num_groups, 1)

    def take(self, *, num: int, pad_id: int) -> tuple[RolloutBatch, Tensor]:
        """Returns `num` groups and their rewards [N]; discards all collected groups.

        Args:
            num: number of groups, at most the `num_ready` of every rank. All ranks then compute
                the same number of passes, which some strategies require.
            pad_id: token that pads shorter rows.
        """
        chosen = self._kept[:num] or self._flat
        rollout = join_rollouts([part for part, _ in chosen], pad_id=pad_id)
        rewards = torch.cat([group for _, group in chosen])
        self.clear()
        return rollout, rewards
