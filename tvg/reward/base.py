"""What a reward is."""

from __future__ import annotations

from typing import Protocol

from tvg.core.parsing import ParsedAnswer
from tvg.types import Segment


class Reward(Protocol):
    """Scores N completions; a function with these keyword arguments will do.

    All lists have length N, row n belongs to prompt n // group_size. Times are seconds from the
    start of the clip. A malformed completion is data and earns 0; raising is for broken input.
    """

    def __call__(
        self,
        *,
        texts: list[str],  # special tokens removed
        answers: list[ParsedAnswer],
        truths: list[Segment],
        durations_s: list[float],
    ) -> list[float]: ...
