"""Text of unknown origin made safe for a terminal: control characters appear as escapes.

File names, ids, queries and answers may hold ANSI sequences, which rename a terminal's window, move
its cursor or hide text. Every message and table goes through here on its way out.
"""

from __future__ import annotations

import logging
import re

# C0 and C1 controls but tab and newline, marks that reorder text, line separators, lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Returns the text with escapes (`\x1b`) for control characters; newlines and tabs stay."""
    return _UNSAFE.sub(_escaped, text)


def printable_line(text: str) -> str:
    """Returns `printable` text in one line: newlines and tabs are escaped too."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


class PrintableFormatter(logging.Formatter):
    """Formats log records as printable text."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
