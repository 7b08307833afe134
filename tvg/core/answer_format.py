"""Whether a completion is written in exactly the format that the prompt asks for.

The parsers read more than that ("1.2 to 6 6" is 1.2 to 6), so that a slip costs no score. A policy
in training can move into this tolerance unseen: hence the share of exact answers in the logs.
"""

from __future__ import annotations

import re
from string import Formatter

from tvg.core.parsing import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

_CHOICE = re.compile(re.escape(ANSWER_OPEN) + r"\([A-Z]\)" + re.escape(ANSWER_CLOSE))
_DECIMALS = re.compile(r"[0-9]*\.([0-9]+)f")
_WHOLE = "[0-9]{1,9}"


def answer_pattern(answer_format: str | None) -> re.Pattern[str]:
    """The pattern of an exact answer block.

    Args:
        answer_format: as in `str.format`, with fields for seconds; only what stands from the last
            `<answer>` on counts. None: the letter of an option, in parentheses.
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
    """Whether the stripped text is one think block (if asked for) and the exact answer block.

    Args:
        text: one completion.
        pattern: of the answer block, by `answer_pattern`.
        think: the think block is asked for; else nothing may stand before the answer block.
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
