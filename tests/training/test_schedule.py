"""Tests of learning-rate schedules against hand-computed numbers."""

import math

import pytest
import torch

from tvg.core.limits import SCHEDULES
from tvg.training.schedule import warmup_schedule


def rates(name: str, *, num_steps: int = 8, warmup_steps: int = 0) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_schedule(optimizer, num_steps, name=name, warmup_steps=warmup_steps)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("name", "warmup_steps", "expected"),
    [
        ("constant", 0, [2.0] * 8),
        ("constant_with_warmup", 4, [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]),
        ("linear", 0, [2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]),
        ("linear", 4, [0.0, 0.5, 1.0, 1.5, 2.0, 1.5, 1.0, 0.5]),
        ("cosine", 0, [1 + math.cos(math.pi * i / 8) for i in range(8)]),
        ("cosine", 2, [0.0, 1.0] + [1 + math.cos(math.pi * i / 6) for i in range(6)]),
    ],
)
def test_rates_equal_hand_computed_numbers(name, warmup_steps, expected):
    assert rates(name, warmup_steps=warmup_steps) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_can_be_built(name):
    assert len(rates(name)) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cosin"}, r"objective.schedule.name: expected one of .*got 'cosin'"),
        ({"name": "linear", "warmup_steps": 9}, r"schedule.warmup_steps: expected 0 to 8 .*got 9"),
        ({"name": "linear", "warmup_steps": -1}, r"schedule.warmup_steps: .*got -1"),
        ({"name": "constant", "warmup_steps": 1}, r"'constant' has no warm-up"),
    ],
)
def test_invalid_schedules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rates(**changes)
