"""Tests of text blocks, words, longest common subsequences (LCS) and ROUGE-L."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvg.core.text import first_block, last_block, lcs_length, rouge_l, words


def table_lcs(a: list[str], b: list[str]) -> int:
    """Returns the LCS length from the table of all pairs of prefixes."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in product(range(len(a)), range(len(b))):
        same = a[i] == b[j]
        rows[i + 1][j + 1] = rows[i][j] + 1 if same else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


# Up to 90 words, so that some integers of lcs_length have more than 64 bits.
some_words = st.lists(st.sampled_from("abcd"), max_size=90)


@settings(deadline=None)  # a busy machine must not fail the test
@given(some_words, some_words)
def test_lcs_equals_the_table(a: list[str], b: list[str]) -> None:
    assert lcs_length(a, b) == table_lcs(a, b) == lcs_length(b, a)


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [
        ("", "", 0),
        ("a b", "", 0),
        ("a b c d", "a b c d", 4),
        ("the cat sat on the mat", "the cat on mat", 4),
        ("a b c", "c b a", 1),
        ("a " * 200, "a " * 150, 150),
    ],
)
def test_lcs_by_hand(a: str, b: str, length: int) -> None:
    assert lcs_length(a.split(), b.split()) == lcs_length(b.split(), a.split()) == length


def test_rouge_by_hand() -> None:
    # LCS 4 of 6 and 4 words: P = 1, R = 4 / 6, F1 = 2 * 4 / 10.
    assert rouge_l(["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "on", "mat"]) == 0.8
    assert rouge_l(["a"], ["b"]) == rouge_l(["a"], []) == 0.0
    assert rouge_l([], []) == 1.0


def test_text_is_split_into_words() -> None:
    text = "It's <answer>12.5 to 17_b</answer>, \u00c9t\u00e9\ud800!"
    expected = ["it", "s", "answer", "12", "5", "to", "17", "b", "answer", "\u00e9t\u00e9"]
    assert words(text, max_words=99) == expected
    assert words(text, max_words=3) == expected[:3]
    assert words("", max_words=3) == []


pieces = st.sampled_from(["<a>", "</a>", "<a", "x", " ", "\n"])


@settings(deadline=None)  # a busy machine must not fail the test
@given(st.lists(pieces, max_size=14).map("".join))
def test_blocks_equal_the_matches_of_the_regular_expression(text: str) -> None:
    found = [block.strip() for block in re.findall(r"<a>(.*?)</a>", text, re.DOTALL)]
    assert first_block(text, "<a>", "</a>") == (found[0] if found else None)
    assert last_block(text, "<a>", "</a>") == (found[-1] if found else None)
