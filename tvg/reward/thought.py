"""Statistics of a thought: length, keywords, time ranges, paragraphs.

Logged beside the rewards by the Time-R1 release, and not paid there; given a weight they are.
Functions of the settings in their YAML; all are 0 where the think block is missing.
"""

from __future__ import annotations

import re
from itertools import islice

from tvg.core.parsing import ParsedAnswer

# The published `<timestep>\s*(\d+\.?\d*)\s+to\s+(\d+\.?\d*)\s*</timestep>`, which cannot backtrack.
_TIMESTEP = re.compile(
    r"<timestep>\s*+\d++(?:\.\d*+)?+\s++to\s++\d++(?:\.\d*+)?+\s*+</timestep>", re.IGNORECASE
)


def think_length(*, answers: list[ParsedAnswer], per_char: float, max_chars: int) -> list[float]:
    """`per_char` for each character of the thought, up to `max_chars` of them."""
    return [per_char * min(len(answer.thought or ""), max_chars) for answer in answers]


def keyword_use(
    *, answers: list[ParsedAnswer], keywords: list[str], per_keyword: float, max_keywords: int
) -> list[float]:
    """`per_keyword` for each of the keywords that occurs, inside of words too and in any case."""

    def count(thought: str) -> int:
        lower = thought.lower()
        return sum(keyword.lower() in lower for keyword in keywords)

    return [per_keyword * min(count(a.thought or ""), max_keywords) for a in answers]


def timesteps(*, answers: list[ParsedAnswer], per_pair: float, max_pairs: int) -> list[float]:
    """`per_pair` for each `<timestep>1.0 to 2.0</timestep>`, up to `max_pairs` of them."""

    def count(thought: str) -> int:
        return sum(1 for _ in islice(_TIMESTEP.finditer(thought), max_pairs))

    return [per_pair * count(answer.thought or "") for answer in answers]


def paragraphs(*, answers: list[ParsedAnswer], per_line: float, max_lines: int) -> list[float]:
    """`per_line` for each line that is not empty, up to `max_lines` of them."""

    def count(thought: str) -> int:
        return sum(bool(line.strip()) for line in thought.split("\n"))

    return [per_line * min(count(answer.thought or ""), max_lines) for answer in answers]
