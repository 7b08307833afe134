"""Tagged blocks and words of a text, and how alike two lists of words are; all in bounded time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

_WORD = re.compile(r"[^\W_]++")


def first_block(text: str, opening: str, closing: str) -> str | None:
    """The text between the first opening tag and the closing tag after it, stripped."""
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return text[start + len(opening) : end].strip() if end >= 0 else None


def last_block(text: str, opening: str, closing: str) -> str | None:
    """The last of the non-overlapping blocks, each closed by the first closing tag after it.

    The same as the last match of `opening(.*?)closing` where the dot matches newlines; stripped.
    """
    block: str | None = None
    start = text.find(opening)
    while start >= 0:
        inner_start = start + len(opening)
        end = text.find(closing, inner_start)
        if end < 0:
            break
        block = text[inner_start:end]
        start = text.find(opening, end + len(closing))
    return None if block is None else block.strip()


def words(text: str, *, max_words: int) -> list[str]:
    """The first words of a text in lower case: runs of letters and digits."""
    return [match[0].lower() for match in islice(_WORD.finditer(text), max_words)]


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyro 2004): one number of len(a) bits, and a handful of operations on it for
    each word of `b`, in the place of a table of len(a) * len(b) cells.
    """
    if not a or not b:
        return 0
    places: dict[str, int] = {}
    for index, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full  # its zeros are the steps of the table's current row
    for word in b:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L of two lists of words as F1: 2 * LCS / (len(a) + len(b)) (Lin, 2004).

    Symmetric, in [0, 1]; two empty lists are alike (1).
    """
    if not a and not b:
        return 1.0
    return 2 * lcs_length(a, b) / (len(a) + len(b))
