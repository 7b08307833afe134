"""Reading the chosen option of a multiple-choice question, in time linear in the text's length."""

from __future__ import annotations

import re

from tvg.core.parsing import ANSWER_CLOSE, ANSWER_OPEN
from tvg.core.text import last_block

_IN_PARENTHESES = re.compile(r"\(([A-Za-z])\)")
# "B", "b)", "B.", "B: opens", "Option B", "The best answer is B."; not the article of "A man".
_AT_START = re.compile(
    r"(?:(?:the\s)?+(?:best\s|correct\s)?+(?:option|answer|choice)(?:\sis)?+:?+\s)?+"
    r"([a-z])(?:[.):]|$)",
    re.IGNORECASE,
)


def parse_choice(text: str) -> str | None:
    """The option letter that the last `<answer>` block names, in upper case; None for none."""
    answer = last_block(text, ANSWER_OPEN, ANSWER_CLOSE)
    return None if answer is None else option_letter(answer)


def option_letter(answer: str) -> str | None:
    """The last letter in parentheses, else the letter that an answer consists of or begins with.

    Understood: "(B)", "(B) opens the door", "B", "b.", "B: opens the door", "Option B".
    """
    letters = _IN_PARENTHESES.findall(answer)
    if letters:
        return str(letters[-1]).upper()
    match = _AT_START.match(answer.strip())
    return match[1].upper() if match else None
