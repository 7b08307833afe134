"""Names that a reward may have: they become keys of the config, columns and names of metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Metrics beside those of the rewards themselves: train/reward/total, train/reward/kl_penalty, and
# NAME_std and NAME_flat_groups of each.
RESERVED = ("total", "kl_penalty")
RESERVED_ENDINGS = ("_std", "_flat_groups")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def reward_name_problems(names: Iterable[str]) -> list[str]:
    """One line for each name that no reward can have, beginning with its config key."""
    problems = []
    for name in names:
        if _NAME.fullmatch(name) is None:
            problems.append(
                f"reward.{name}: {name!r} cannot name a reward: it has to begin with a letter, and "
                "letters, digits, '_' and '-' may follow"
            )
        elif name in RESERVED or name.endswith(RESERVED_ENDINGS):
            problems.append(
                f"reward.{name}: {name!r} cannot name a reward: the logs use it for a metric of "
                f"their own (train/reward/{name})"
            )
    return problems
