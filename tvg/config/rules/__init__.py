"""Rules against combinations of settings that cannot work.

Each rule is a small function that takes a plain config and returns problems. A rule ignores missing
keys, so that it applies to every command. A component checks its own arguments in its constructor.
If the constructor is only reached after minutes (after weights are loaded, say), the check is a
function of `tvg.core.limits`, which both the constructor and a rule call.
"""

from __future__ import annotations

from tvg.config.rules import learning, machine
from tvg.config.values import Rule

RULES: tuple[Rule, ...] = (*learning.RULES, *machine.RULES)

# These rules import what the config names, so they run only after all others have passed.
IMPORTING_RULES: tuple[Rule, ...] = (learning.reward_cannot_be_called,)
