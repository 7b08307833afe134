"""Provides the order of examples, and a loader that can resume in the middle of an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler


class BatchOrder(Sampler[list[int]]):
    """Yields the batches of one rank for one epoch, determined by the arguments and `epoch`.

    Every rank gets the same number of examples and batches. If the examples do not divide evenly,
    the first ones of the order are repeated (at most `world_size - 1`). The last batch may be
    smaller.

    Args:
        num_examples: size of the set.
        batch_size: examples per batch on one rank.
        shuffle: use a new order each epoch; False keeps the file's order (a curriculum).
        seed: seed of the shuffle.
        rank: rank of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        *,
        num_examples: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        if num_examples < 1:
            raise ValueError("the data set is empty: no example is left to train on")
        if batch_size < 1:
            raise ValueError(f"data.batch_size: expected at least 1, got {batch_size}")
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        per_rank = -(-self.num_examples // self.world_size)
        return -(-per_rank // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        mine = self._indices()
        for batch in range(self.first_batch, len(self)):
            yield mine[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _indices(self) -> list[int]:
        order = list(range(self.num_examples))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.num_examples, generator=generator).tolist()
        per_rank = -(-self.num_examples // self.world_size)
        repeated = itertools.islice(itertools.cycle(order), per_rank * self.world_size)
        return list(repeated)[self.rank :: self.world_size]


# Attribute that determines the order -> the setting that changes it.
ORDER_KEYS = {
    "num_examples": "data (its files, selection, limit_train)",
    "batch_size": "data.batch_size",
    "world_size": "trainer.devices (processes in all)",
    "shuffle": "data.shuffle",
    "seed": "seed",
}


class ResumableLoader(DataLoader[Any]):
    """A data loader that tracks its position; Lightning saves and restores it with the checkpoint.

    The position advances before a batch is yielded, because the step on that batch may save the
    checkpoint. The last batch of an epoch advances the position to the start of the next epoch,
    because a caller that knows the number of batches requests no further one.

    Args:
        order: the batches; the loader sets its epoch and first batch.
        **options: options of `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Any, *, order: BatchOrder, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=order, **options)
        self.order = order
        self.epoch = 0
        self.batches_done = 0  # of this epoch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.order.epoch, self.order.first_batch = self.epoch, self.batches_done
        for batch in super().__iter__():
            self._move(self.epoch, self.batches_done + 1)
            yield batch

    def _move(self, epoch: int, batches_done: int) -> None:
        is_over = batches_done >= len(self.order)
        self.epoch, self.batches_done = (epoch + 1, 0) if is_over else (epoch, batches_done)

    def state_dict(self) -> dict[str, int]:
        """Returns the position and the values that determine the order."""
        return {
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            **{name: getattr(self.order, name) for name in ORDER_KEYS},
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores a position.

        Values that determine the order are checked only if the state has them (older checkpoints
        do not).

        Raises:
            ValueError: the state belongs to another order, so examples would be lost or repeated.
                The message names the config key.
        """
        for name, key in ORDER_KEYS.items():
            got = getattr(self.order, name)
            if name in state and state[name] != got:
                raise ValueError(
                    f"{key}: the run that is resumed had {name}={state[name]}, got {got}: the rest "
                    f"of its epoch would differ; resume with {state[name]}, or start a new run"
                )
        # Older checkpoints may point past the last batch of an epoch.
        self._move(state["epoch"], state["batches_done"])
