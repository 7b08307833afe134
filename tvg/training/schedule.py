"""Learning-rate schedules by name."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from tvg.core.limits import refuse, schedule_problems


def warmup_schedule(
    optimizer: Optimizer, num_steps: int, *, name: str, warmup_steps: int
) -> LambdaLR:
    """Returns a schedule of transformers' `get_scheduler` over `num_steps` optimizer steps.

    Raises:
        ValueError: the name is unknown, there are more warm-up steps than steps, or warm-up is set
            for a schedule without warm-up.
    """
    refuse(schedule_problems(name, warmup_steps, num_steps))
    return get_scheduler(
        name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=num_steps
    )


def set_rates(schedule: LambdaLR) -> None:
    """Sets the optimizer's learning rates to the schedule's values for the current step.

    A restored optimizer has the rate of the schedule that it was saved with. At the end of a run,
    this rate is often 0, which would be wrong if the run is extended. The schedule multiplies each
    group's `initial_lr`, which a resumed run may have changed. If schedule and rates are the same,
    nothing changes.
    """
    groups = schedule.optimizer.param_groups
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    factors = [rate_of(schedule.last_epoch) for rate_of in schedule.lr_lambdas]
    for group, base_rate, factor in zip(groups, schedule.base_lrs, factors, strict=True):
        group["lr"] = base_rate * factor
