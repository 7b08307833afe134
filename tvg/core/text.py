"""Finds tagged blocks and words in text and compares lists of words, all in bounded time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

_WORD = re.compile(r"[^\W_]++")


def first_block(text: str, opening: str, closing: str) -> str | None:
    """Returns the text between the first opening tag and the next closing tag, stripped."""
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return text[start + len(opening) : end].strip() if end >= 0 else None


def last_block(text: str, opening: str, closing: str) -> str | None:
    """Returns the text of the last block, stripped.

    Blocks are read from left to right. A block ends at the first closing tag after its opening tag.
    Equivalent to the last match of `opening(.*?)closing` if the dot matches newlines.
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
    """Returns the first words of a text in lower case; a word is a run of letters and digits."""
    return [match[0].lower() for match in islice(_WORD.finditer(text), max_words)]


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    The algorithm is bit-parallel (Hyyro 2004): for each word of `b`, it needs a few operations on
    one integer of len(a) bits, instead of a table of len(a) * len(b) cells.
    """
    if not a or not b:
        return 0
    places: dict[str, int] = {}
    for index, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full  # bit i: 0 if a[: i + 1] has a longer LCS with the words so far than a[:i]
    for word in b:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """Returns ROUGE-L of two lists of words as F1: 2 * LCS / (len(a) + len(b)) (Lin, 2004).

    The value is symmetric and in [0, 1]; it is 1 for two empty lists.
    """
    if not a and not b:
        return 1.0
    return 2 * lcs_length(a, b) / (len(a) + len(b))
