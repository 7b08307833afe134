"""Checks that a completion has exactly the format that the prompt requests.

The parsers are more tolerant: they read "1.2 to 6 6" as 1.2 to 6, so that a small formatting error
does not cost the score. During training, a policy can drift into such formats. The logged share of
exact answers makes this drift visible.
"""

from __future__ import annotations

import re
from string import Formatter

from tvg.core.parsing import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

_CHOICE = re.compile(re.escape(ANSWER_OPEN) + r"\([A-Z]\)" + re.escape(ANSWER_CLOSE))
_DECIMALS = re.compile(r"[0-9]*\.([0-9]+)f")
_WHOLE = "[0-9]{1,9}"


def answer_pattern(answer_format: str | None) -> re.Pattern[str]:
    """Returns the pattern of an exact answer block.

    Args:
        answer_format: a `str.format` template with fields for seconds. Text before its last
            `<answer>` is ignored. None: the answer is the letter of an option, in parentheses.
    """
    if answer_format is None:
        return _CHOICE
    pieces: list[str] = []
    for literal, name, spec, _ in Formatter().parse(answer_format):
        if ANSWER_OPEN in literal:
            pieces.clear()
            literal = literal[literal.rindex(ANSWER_OPEN) :]
        pieces.append(re.escape(literal))
        if name is not None:
            pieces.append(_number_pattern(spec or ""))
    return re.compile("".join(pieces))


def is_exact(text: str, pattern: re.Pattern[str], *, think: bool) -> bool:
    """Returns whether the stripped text is an exact answer block, after a think block if required.

    Args:
        text: one completion.
        pattern: pattern of the answer block, from `answer_pattern`.
        think: True requires a think block; False allows nothing before the answer block.
    """
    text = text.strip()
    start = max(text.rfind(ANSWER_OPEN), 0)
    if pattern.fullmatch(text, start) is None:
        return False
    before = text[:start].rstrip() if think else text[:start]
    if not think:
        return not before
    inside = before.removeprefix(THINK_OPEN).removesuffix(THINK_CLOSE)
    is_block = before == THINK_OPEN + inside + THINK_CLOSE
    return is_block and not any(t in inside for t in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN))


def _number_pattern(spec: str) -> str:
    decimals = _DECIMALS.fullmatch(spec)
    if decimals is None:
        return rf"{_WHOLE}(?:\.[0-9]{{1,9}})?"
    count = int(decimals[1])
    return rf"{_WHOLE}\.[0-9]{{{count}}}" if count else _WHOLE
