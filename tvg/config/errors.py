"""Defines the error for problems in the configuration, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ConfigError(ValueError):
    """One or more problems in the configuration.

    Args:
        problems: one line each, beginning with the config key.
    """

    def __init__(self, *problems: str) -> None:
        assert problems
        self.problems: Sequence[str] = problems
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        lines = [f"{len(self.problems)} problems in the configuration:"]
        return "\n".join(lines + [f"  - {problem}" for problem in self.problems])


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Returns `; did you mean 'seed'?`, or an empty text if no known name is close.

    Args:
        name: the name that was written.
        known: the names that exist.
        prefix: put before each suggested name.
    """
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return (
        f"; did you mean {' or '.join(repr(prefix + match) for match in close)}?" if close else ""
    )
