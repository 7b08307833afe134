r"""Parses thoughts, answers and time ranges from completions, in time linear in their length.

A policy in training can write anything, so no function raises an error because of a text, and no
pattern backtracks. Numbers are found in one pass (possessive quantifiers). Then only the short gaps
between neighbouring numbers are examined.

The published reference's `(\d+\.?\d*) (to|and) (\d+\.?\d*)` takes at least quadratic time on a long
run of digits, and rejects "5.0s to 11.6s". It accepts ranges in plain seconds, and this module
reads them in the same way.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tvg.core.text import first_block, last_block
from tvg.types import Segment

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

# Seconds "11", "11.6", "11." or a clock time "1:05", "01:02:03.5".
_NUMBER = re.compile(r"[0-9]++(?::[0-5][0-9](?![0-9])){0,2}+(?:\.[0-9]*+)?+")
_GAP = re.compile(
    r"\s*+(?:seconds?|secs?|s)?+\s*+(?:to|and|until|[-\u2013\u2014~])\s*+",
    re.IGNORECASE,
)
_MAX_GAP_CHARS = 32  # between the two numbers of a range; longer gaps are skipped
_THINK_TO_ANSWER = re.compile(r"</think>\s*+<answer>")


@dataclass(frozen=True)
class ParsedAnswer:
    """The parts of a completion; None for a missing part."""

    segment: Segment | None  # as written: may be reversed, or extend beyond the clip
    thought: str | None = None  # inside the first <think> block, stripped
    answer: str | None = None  # inside the last <answer> block, stripped


def parse_answer(text: str, *, anywhere: bool = False) -> ParsedAnswer:
    """Reads the last time range of the last `<answer>` block.

    Accepts "5 to 11.6", "5.0s to 11.6s", "from 5 to 11.6 seconds", "between 5 and 11.6",
    "5 - 11.6", "00:05 - 00:11". Ranges do not overlap: "1 to 2 to 3" is 1 to 2.

    Args:
        text: one completion.
        anywhere: if the answer block is missing or contains no range, use the last range of the
            complete text. (The published evaluation always reads the complete text.)
    """
    answer = last_block(text, ANSWER_OPEN, ANSWER_CLOSE)
    segment = None if answer is None else _last_range(answer)
    if segment is None and anywhere:
        segment = _last_range(text)
    return ParsedAnswer(
        segment=segment,
        thought=first_block(text, THINK_OPEN, THINK_CLOSE),
        answer=answer,
    )


def has_format(text: str, *, think: bool) -> bool:
    r"""Returns whether the stripped text is a think block, then an answer block, and nothing else.

    The result equals a full match of Time-R1's format reward,
    `<think>.*?</think>\s*<answer>.*?</answer>` (dot matches newline). That pattern would take
    quadratic time on repeated tags.

    Args:
        text: one completion.
        think: False requires the answer block alone.
    """
    text = text.strip()
    opening = THINK_OPEN if think else ANSWER_OPEN
    if not (text.startswith(opening) and text.endswith(ANSWER_CLOSE)):
        return False
    return not think or _THINK_TO_ANSWER.search(text) is not None  # tags cannot overlap


def _last_range(text: str) -> Segment | None:
    """Returns the last non-overlapping "number separator number", matched left to right."""
    last: Segment | None = None
    before: re.Match[str] | None = None
    for number in _NUMBER.finditer(text):
        if before is not None and _is_gap(text, before.end(), number.start()):
            segment = Segment(_seconds(before[0]), _seconds(number[0]))
            if math.isfinite(segment.start_s) and math.isfinite(segment.end_s):
                last = segment
            before = None
        else:
            before = number
    return last


def _is_gap(text: str, start: int, end: int) -> bool:
    if not 0 < end - start <= _MAX_GAP_CHARS:
        return False
    return _GAP.fullmatch(text, start, end) is not None


def _seconds(number: str) -> float:
    """Converts "11.6" or "[h:]mm:ss[.s]" to seconds; infinite if there are too many digits."""
    seconds = 0.0
    for part in number.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
