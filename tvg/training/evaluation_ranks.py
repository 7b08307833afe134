"""Shares an evaluation between the processes that torchrun starts.

Process r of W predicts the batches r, r + W, r + 2W, ... of the evaluation by one process. The
batches do not depend on W, so the predictions do not, either.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
_TIMEOUT = timedelta(days=7)  # a process may finish long before another one


@dataclass(frozen=True, kw_only=True)
class EvaluationRank:
    """One of the processes that share an evaluation."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # number on its machine, which selects its GPU

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Returns the process's GPU if `device` is an unspecified GPU, otherwise `device`."""
        if self.world_size > 1 and device == torch.device("cuda"):
            return torch.device("cuda", self.local_rank)
        return device

    def partial_file(self) -> str:
        """Returns the name of the file with the process's predictions so far."""
        mine = f"rank_{self.rank}_of_{self.world_size}." if self.world_size > 1 else ""
        return f"predictions.{mine}partial.jsonl"

    def share(self, num_done: int) -> slice:
        """Selects the process's batches after its first `num_done` ones."""
        return slice(self.rank + num_done * self.world_size, None, self.world_size)

    def wait_for_all(self) -> None:
        """Waits until every process calls it."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Lets the first process run the block before the others, which find its files."""
        if not self.is_first:
            self.wait_for_all()
        yield
        if self.is_first:
            self.wait_for_all()

    def gather(self, batches: list[T]) -> list[T]:
        """Returns the results of all batches, in order, on the first process; others get none."""
        if self.world_size == 1:
            return batches
        of_all: list[list[T] | None] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(batches, of_all)
        return in_order([part or [] for part in of_all or ()])


def in_order(of_ranks: Sequence[Sequence[T]]) -> list[T]:
    """Merges the results of all processes into the order of one process."""
    nothing = object()
    turns = itertools.zip_longest(*of_ranks, fillvalue=nothing)
    return [item for turn in turns for item in turn if item is not nothing]  # type: ignore[misc]


@contextmanager
def evaluation_rank() -> Iterator[EvaluationRank]:
    """Joins the processes of torchrun until exit; without torchrun there is one process.

    The processes communicate over gloo, because they exchange only predictions.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        yield EvaluationRank()
        return
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield EvaluationRank(
            rank=dist.get_rank(),
            world_size=world_size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        )
    finally:
        dist.destroy_process_group()
