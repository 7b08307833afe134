"""Groups trained parameters by their optimizer settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tvg.core.limits import ADAPTER, PARTS, refuse, untrained_rate_problems
from tvg.model.adapters import adapter_ids
from tvg.model.freezing import component_of_each


def parameter_groups(
    model: nn.Module, component_lr: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Returns groups by weight decay and learning rate; groups without a separate rate are first.

    Weight decay applies to matrices, not to gains and biases.

    Args:
        model: a video-language model, with or without adapters.
        component_lr: learning rates of vision, merger, language and adapter; None or a missing
            key: the optimizer's rate.

    Raises:
        ValueError: a rate is below 0, or it is for a part that is unknown or not trained.
    """
    check_rates(component_lr)
    adapters, parts = adapter_ids(model), component_of_each(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    part_of = {id(p): ADAPTER if id(p) in adapters else parts[id(p)] for p in trained}
    refuse(untrained_rate_problems(component_lr, set(part_of.values())))
    groups: list[dict[str, Any]] = []
    for rate in dict.fromkeys([None, *component_lr.values()]):
        mine = [p for p in trained if component_lr.get(part_of[id(p)]) == rate]
        own = {} if rate is None else {"lr": rate}
        groups += [
            {"params": [p for p in mine if p.ndim >= 2], **own},
            {"params": [p for p in mine if p.ndim < 2], "weight_decay": 0.0, **own},
        ]
    return [group for group in groups if group["params"]]


def check_rates(component_lr: Mapping[str, float | None]) -> None:
    """Raises a ValueError for learning rates of unknown parts and for rates below 0."""
    known = (*PARTS, ADAPTER)
    for part, rate in component_lr.items():
        if part not in known:
            raise ValueError(
                f"objective.component_lr: expected any of {', '.join(known)}, got {part!r}"
            )
        if rate is not None and not rate >= 0:
            raise ValueError(
                f"objective.component_lr.{part}: expected at least 0, or null, got {rate}"
            )
