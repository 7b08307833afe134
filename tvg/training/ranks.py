"""Collects means, minima, decisions and objects over all ranks, and reports lost ranks.

With one rank, nothing is communicated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor

T = TypeVar("T")
_OF_GLOO = "/gloo/"  # gloo raises a RuntimeError that names its source file


def gather_objects(trainer: Trainer, mine: T) -> list[T]:
    """Returns the object of every rank, in the order of the ranks; equal on all ranks."""
    if trainer.world_size == 1:
        return [mine]
    gathered: list[T] = [mine] * trainer.world_size
    torch.distributed.all_gather_object(gathered, mine)
    return gathered


def mean_over_ranks(trainer: Trainer, count: Tensor) -> Tensor:
    """Returns the mean over ranks of a per-rank count, as a float tensor.

    Gradients are averaged over ranks. With this denominator, every token (or completion) has the
    same weight on every rank.
    """
    if trainer.world_size == 1:
        return count.float()
    return _all(trainer, count.float()).mean()


def least_over_ranks(trainer: Trainer, number: int, *, device: torch.device) -> int:
    """Returns the minimum of a number over all ranks."""
    if trainer.world_size == 1:
        return number
    return int(_all(trainer, torch.tensor(float(number), device=device)).min())


def is_true_on_all_ranks(trainer: Trainer, is_true: bool) -> bool:
    """Returns whether a condition is true on every rank."""
    if trainer.world_size == 1:
        return is_true
    return trainer.strategy.reduce_boolean_decision(is_true, all=True)


def _all(trainer: Trainer, value: Tensor) -> Tensor:
    gathered: Any = trainer.strategy.all_gather(value)
    assert isinstance(gathered, Tensor)
    return gathered


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Explains the errors of gloo and NCCL if another rank has ended or does not answer.

    Raises:
        ValueError: communication failed.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip()
        if not isinstance(error, torch.distributed.DistError) and _OF_GLOO not in text:
            raise
        raise ValueError(
            "another process of this run has ended, or did not answer within strategy.timeout: "
            "its own output has the cause; to resume: the same command with resume=auto "
            f"({text.splitlines()[0]})"
        ) from error
