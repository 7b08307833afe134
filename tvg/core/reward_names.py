"""Checks the names of rewards, which are used as config keys, table columns and metric names."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Metrics logged in addition to the rewards: train/reward/total, train/reward/kl_penalty, and
# NAME_std and NAME_flat_groups for each reward.
RESERVED = ("total", "kl_penalty")
RESERVED_ENDINGS = ("_std", "_flat_groups")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def reward_name_problems(names: Iterable[str]) -> list[str]:
    """Returns one line for each invalid reward name, beginning with its config key."""
    problems = []
    for name in names:
        if _NAME.fullmatch(name) is None:
            problems.append(
                f"reward.{name}: {name!r} cannot name a reward: it has to begin with a letter, and "
                "letters, digits, '_' and '-' may follow"
            )
        elif name in RESERVED or name.endswith(RESERVED_ENDINGS):
            problems.append(
                f"reward.{name}: {name!r} cannot name a reward: the logs use it for another metric "
                f"(train/reward/{name})"
            )
    return problems
