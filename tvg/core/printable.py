"""Makes untrusted text safe for a terminal by escaping control characters.

File names, ids, queries and answers may contain ANSI sequences, which can rename a terminal's
window, move its cursor or hide text. Every message and table is passed through this module before
it is printed.
"""

from __future__ import annotations

import logging
import re

# C0 and C1 controls except tab and newline, bidirectional marks, line separators, lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Returns the text with control characters escaped (`\x1b`); keeps newlines and tabs."""
    return _UNSAFE.sub(_escaped, text)


def printable_line(text: str) -> str:
    """Returns `printable` text on one line: newlines and tabs are escaped too."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


class PrintableFormatter(logging.Formatter):
    """Formats log records as printable text."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
