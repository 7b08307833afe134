"""Defines rules that reject combinations of settings that cannot work.

A rule is a small function from a plain config to a list of problems. It ignores missing keys, so
that it applies to every command. Limits of a single component are checked in its constructor. If
the constructor runs late, for example after loading weights, the check is a function of
`tvg.core.limits` that both the constructor and a rule call.
"""

from __future__ import annotations

from tvg.config.rules import learning, machine, stopping
from tvg.config.values import Rule

RULES: tuple[Rule, ...] = (*learning.RULES, *machine.RULES, *stopping.RULES)

# These rules import targets of the config, so they run only after all others have passed.
IMPORTING_RULES: tuple[Rule, ...] = (learning.reward_cannot_be_called,)
