"""Dynamic sampling: an optimizer step waits for groups that can teach something."""

from __future__ import annotations

import torch
from torch import Tensor

from tvg.core.batches import join_rollouts
from tvg.types import RolloutBatch


class FlatGroupResampling:
    """Collects groups whose rewards differ, batch after batch, until they fill one.

    A group of equal rewards has no advantages: it would only thin the step out. As in DAPO
    (arXiv 2503.14476, section 3.2) such groups are left out and further prompts are sampled in
    their place; what is found beyond a full batch is left out, too, so that every step has the
    same number of groups and nothing is carried over.

    Args:
        max_batches: batches sampled for one step at most; then, and at an epoch's end, it is taken
            with the groups that there are (a flat one, where there is none at all).

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
        """Forgets what has been collected."""
        self.num_batches = 0
        self.num_groups = 0  # sampled, flat ones included
        self._wanted = 0
        self._kept: list[tuple[RolloutBatch, Tensor]] = []
        self._flat: list[tuple[RolloutBatch, Tensor]] = []  # the first flat group, if any

    def add(self, rollout: RolloutBatch, rewards: Tensor) -> None:
        """Takes in a batch of groups.

        Args:
            rollout: B prompts with G completions each.
            rewards: [N] totals.
        """
        size = rollout.group_size
        self.num_batches += 1
        self.num_groups += len(rollout.prompts)
        self._wanted = max(self._wanted, len(rollout.prompts))
        for number, group in enumerate(rewards.view(-1, size)):
            is_flat = bool(group.max() == group.min())
            if is_flat and self._flat:
                continue
            part = rollout.part(range(number, number + 1), range(size))
            (self._flat if is_flat else self._kept).append((part, group))

    @property
    def is_full(self) -> bool:
        """Whether this rank has as many groups as a batch holds."""
        return len(self._kept) >= self._wanted

    @property
    def is_exhausted(self) -> bool:
        """Whether no further batch may be sampled for this step; the same on every rank."""
        return self.num_batches >= self.max_batches

    @property
    def num_ready(self) -> int:
        """Groups that this rank could learn from now; a flat one counts where no other is there."""
        return max(min(len(self._kept), self._wanted), 1)

    @property
    def kept_share(self) -> float:
        """Share of the sampled groups whose rewards differ."""
        return len(self._kept) / max(self.num_groups, 1)

    def take(self, *, num: int, pad_id: int) -> tuple[RolloutBatch, Tensor]:
        """Some groups and their rewards [N]; then everything is forgotten.

        Args:
            num: of groups, at most `num_ready` on every rank: all ranks go through equally many
                passes, which some strategies count on.
            pad_id: fills shorter rows.
        """
        chosen = self._kept[:num] or self._flat
        rollout = join_rollouts([part for part, _ in chosen], pad_id=pad_id)
        rewards = torch.cat([group for _, group in chosen])
        self.clear()
        return rollout, rewards
