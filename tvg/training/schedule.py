"""Learning-rate schedules by name."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from tvg.core.limits import refuse, schedule_problems


def warmup_schedule(
    optimizer: Optimizer, num_steps: int, *, name: str, warmup_steps: int
) -> LambdaLR:
    """A schedule of transformers' `get_scheduler` over `num_steps` optimizer steps.

    Raises:
        ValueError: unknown name, more warm-up than steps, or warm-up for a schedule without any.
    """
    refuse(schedule_problems(name, warmup_steps, num_steps))
    return get_scheduler(
        name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=num_steps
    )


def set_rates(schedule: LambdaLR) -> None:
    """Sets the learning rates that a schedule gives for its current step.

    A restored optimizer holds the rate of the schedule that it was saved with, which is 0 at the
    end of a run that is then extended. If the schedule is the same, nothing changes.
    """
    groups = schedule.optimizer.param_groups
    factors = [rate_of(schedule.last_epoch) for rate_of in schedule.lr_lambdas]
    for group, base_rate, factor in zip(groups, schedule.base_lrs, factors, strict=True):
        group["lr"] = base_rate * factor
