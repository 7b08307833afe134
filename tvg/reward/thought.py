"""Rewards from statistics of a thought: length, keywords, time ranges, paragraphs.

The Time-R1 release only logs these statistics. Here they count if their weight is not 0. Their
settings are in `conf/reward`. All of them are 0 if the think block is missing.
"""

from __future__ import annotations

import re
from itertools import islice

from tvg.core.parsing import ParsedAnswer

# The published `<timestep>\s*(\d+\.?\d*)\s+to\s+(\d+\.?\d*)\s*</timestep>`, without backtracking.
_TIMESTEP = re.compile(
    r"<timestep>\s*+\d++(?:\.\d*+)?+\s++to\s++\d++(?:\.\d*+)?+\s*+</timestep>", re.IGNORECASE
)


def think_length(*, answers: list[ParsedAnswer], per_char: float, max_chars: int) -> list[float]:
    """Returns `per_char` for each character of the thought, up to `max_chars` characters."""
    return [per_char * min(len(answer.thought or ""), max_chars) for answer in answers]


def keyword_use(
    *, answers: list[ParsedAnswer], keywords: list[str], per_keyword: float, max_keywords: int
) -> list[float]:
    """Returns `per_keyword` for each keyword that occurs, up to `max_keywords` keywords.

    Case is ignored, and a keyword may be inside a word.
    """

    def count(thought: str) -> int:
        lower = thought.lower()
        return sum(keyword.lower() in lower for keyword in keywords)

    return [per_keyword * min(count(a.thought or ""), max_keywords) for a in answers]


def timesteps(*, answers: list[ParsedAnswer], per_pair: float, max_pairs: int) -> list[float]:
    """Returns `per_pair` for each `<timestep>1.0 to 2.0</timestep>`, up to `max_pairs` pairs."""

    def count(thought: str) -> int:
        return sum(1 for _ in islice(_TIMESTEP.finditer(thought), max_pairs))

    return [per_pair * count(answer.thought or "") for answer in answers]


def paragraphs(*, answers: list[ParsedAnswer], per_line: float, max_lines: int) -> list[float]:
    """Returns `per_line` for each non-empty line, up to `max_lines` lines."""

    def count(thought: str) -> int:
        return sum(bool(line.strip()) for line in thought.split("\n"))

    return [per_line * min(count(answer.thought or ""), max_lines) for answer in answers]
