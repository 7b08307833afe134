r"""Parses time ranges exactly as the Time-R1 release does, in time linear in the text's length.

The release uses the last match of `(\d+\.?\d*) (to|and) (\d+\.?\d*)`:

- The separator has one space on each side.
- Units and clock times are not recognised: "1:05 to 1:11" is read as 5 to 1.
- Digits of any script are accepted.
- The release's rewards ignore case; its evaluators do not.

That regular expression takes cubic time on a long run of digits. This module first finds the
separators that follow a digit or a point, and then the numbers before and after them.
"""

from __future__ import annotations

import math
import re
from itertools import islice

from tvg.core.parsing import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    ParsedAnswer,
)
from tvg.core.text import last_block
from tvg.types import Segment

# A complete run of digits and points, followed by " to " or " and " and a digit. The lookbehind
# keeps the search from retrying every suffix of a run that is not followed by a separator.
_BEFORE = re.compile(r"(?<![\d.])[\d.]++(?= (?:to|and) \d)")
_BEFORE_ANY_CASE = re.compile(_BEFORE.pattern, re.IGNORECASE)
_BETWEEN = re.compile(r" (?:to|and) ", re.IGNORECASE)
_AFTER = re.compile(r"\d++(?:\.\d*+)?+")
_NUMBER = re.compile(r"\d++(?:\.\d++)?+")


def parse_answer(text: str, *, anywhere: bool = False) -> ParsedAnswer:
    """Reads a completion as the release does.

    Args:
        text: one completion.
        anywhere: False: use the last range of the last `<answer>` block, ignoring case, as in the
            release's rewards. True: use the last range of the complete text, even if the answer
            block has one, with "to" or "and" in lower case, as in the release's evaluators.

    Returns:
        The parsed answer, with the segment as written. There is no segment if a number is beyond
        float's range (the release would continue with infinity and also get an IoU of 0). The
        thought is the last think block.
    """
    answer = last_block(text, ANSWER_OPEN, ANSWER_CLOSE)
    searched = text if anywhere else answer
    return ParsedAnswer(
        segment=None if searched is None else _last_range(searched, any_case=not anywhere),
        thought=last_block(text, THINK_OPEN, THINK_CLOSE),
        answer=answer,
    )


def first_two_numbers(text: str) -> Segment | None:
    r"""Returns the first two matches of `\d+(?:\.\d+)?`, as the release does if there is no range.

    Returns:
        The segment; None if there are fewer than two numbers, or if one is beyond float's range.
    """
    found = [float(number[0]) for number in islice(_NUMBER.finditer(text), 2)]
    return Segment(*found) if len(found) == 2 and all(map(math.isfinite, found)) else None


def _last_range(text: str, *, any_case: bool) -> Segment | None:
    last: tuple[str, str] | None = None
    used = 0  # end of the last match: matches do not overlap
    for run in (_BEFORE_ANY_CASE if any_case else _BEFORE).finditer(text):
        start = _number_at_end(text[max(run.start(), used) : run.end()])
        if start is None:
            continue
        between = _BETWEEN.match(text, run.end())
        assert between is not None
        end = _AFTER.match(text, between.end())
        assert end is not None
        last = (start, end[0])
        used = end.end()
    if last is None:
        return None
    segment = Segment(float(last[0]), float(last[1]))
    is_finite = math.isfinite(segment.start_s) and math.isfinite(segment.end_s)
    return segment if is_finite else None


def _number_at_end(run: str) -> str | None:
    r"""Returns the longest `\d+\.?\d*` at the end of a run of digits and points."""
    *_, whole, fraction = ("", *run.rsplit(".", 2))
    return f"{whole}.{fraction}" if whole else fraction or None
