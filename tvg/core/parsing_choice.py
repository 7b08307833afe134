"""Parses the chosen option of a multiple-choice question, in time linear in the text's length."""

from __future__ import annotations

import re

from tvg.core.parsing import ANSWER_CLOSE, ANSWER_OPEN
from tvg.core.text import last_block

_IN_PARENTHESES = re.compile(r"\(([A-Za-z])\)")
# "B", "b)", "B.", "B: opens", "Option B", "The best answer is B."; not the article in "A man".
_AT_START = re.compile(
    r"(?:(?:the\s)?+(?:best\s|correct\s)?+(?:option|answer|choice)(?:\sis)?+:?+\s)?+"
    r"([a-z])(?:[.):]|$)",
    re.IGNORECASE,
)


def parse_choice(text: str) -> str | None:
    """Returns the option letter of the last `<answer>` block, in upper case, or None."""
    answer = last_block(text, ANSWER_OPEN, ANSWER_CLOSE)
    return None if answer is None else option_letter(answer)


def option_letter(answer: str) -> str | None:
    """Returns the last letter in parentheses; without one, the letter that begins the answer.

    Accepts "(B)", "(B) opens the door", "B", "b.", "B: opens the door", "Option B".
    """
    letters = _IN_PARENTHESES.findall(answer)
    if letters:
        return str(letters[-1]).upper()
    match = _AT_START.match(answer.strip())
    return match[1].upper() if match else None
