"""Rules about when a training stops."""

from __future__ import annotations

from tvg.config.values import Config, Rule, value
from tvg.core.deadline import deadline_problems


def invalid_deadline(cfg: Config) -> list[str]:
    """A deadline must have a known format."""
    deadline, margin_s = value(cfg, "train.deadline"), value(cfg, "train.deadline_margin_s", 0)
    return deadline_problems(deadline, margin_s)


RULES: tuple[Rule, ...] = (invalid_deadline,)
