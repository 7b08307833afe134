"""In which order examples are seen, and how a loader picks up in the middle of an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler


class BatchOrder(Sampler[list[int]]):
    """Batches of one rank for one epoch: a function of seed, epoch, rank and world size alone.

    Every rank gets the same number of examples and of batches: where the set does not divide, the
    order begins again, which shows at most `world_size - 1` examples more than the set holds. The
    last batch may be smaller.

    Args:
        num_examples: size of the set.
        batch_size: examples a batch on one rank.
        shuffle: a new order each epoch; False keeps the file's order (a curriculum).
        seed: of the shuffle.
        rank: this process.
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


# What decides the order -> what changes it on the command line.
ORDER_KEYS = {
    "num_examples": "data (its files, selection, limit_train)",
    "batch_size": "data.batch_size",
    "world_size": "trainer.devices (processes in all)",
    "shuffle": "data.shuffle",
    "seed": "seed",
}


class ResumableLoader(DataLoader[Any]):
    """A data loader that knows its place: Lightning saves and restores it with the checkpoint.

    The place moves before a batch is handed out, since the step on it is what saves the checkpoint;
    with an epoch's last batch it moves to the start of the next, because nobody who knows how many
    batches there are asks for one more.

    Args:
        order: the batches; the loader sets its epoch and first batch.
        **options: of `torch.utils.data.DataLoader`.
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
        """The place, and what decides the order: another order has another place."""
        return {
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            **{name: getattr(self.order, name) for name in ORDER_KEYS},
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes up a place.

        Raises:
            ValueError: it is of another order, where examples would be lost or come twice; names
                the key. States that do not say (older checkpoints) are taken as they are.
        """
        for name, key in ORDER_KEYS.items():
            got = getattr(self.order, name)
            if name in state and state[name] != got:
                raise ValueError(
                    f"{key}: the run that is resumed had {name}={state[name]}, got {got}: the rest "
                    f"of its epoch would be another; resume with {state[name]}, or start a new run"
                )
        # Older checkpoints point after the last batch of an epoch.
        self._move(state["epoch"], state["batches_done"])
