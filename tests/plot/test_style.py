"""Tests of cleaning and wrapping queries, and of describing segments and their visible part."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvg.plot.style import clean_text, describe_segment, visible_part, wrap_text
from tvg.types import Segment


def test_clean_text_keeps_one_printable_line():
    assert clean_text("a\n\tb\x00 \ud800c\u202e") == "a b c"


def test_wrap_text_breaks_between_words():
    assert wrap_text("one two three", num_columns=7, max_lines=3) == ["one two", "three"]


def test_wrap_text_counts_wide_characters_twice():
    assert wrap_text("一个人坐", num_columns=4, max_lines=3) == ["一个", "人坐"]


def test_wrap_text_marks_where_it_cut():
    assert wrap_text("aaaa bbbb cccc", num_columns=4, max_lines=2) == ["aaaa", "bbb…"]


@given(st.text(max_size=300), st.integers(4, 40), st.integers(1, 4))
def test_wrap_text_stays_within_its_lines(text: str, num_columns: int, max_lines: int):
    lines = wrap_text(text, num_columns=num_columns, max_lines=max_lines)
    assert 1 <= len(lines) <= max_lines
    assert all(len(line) <= num_columns for line in lines)


def test_wrap_text_of_a_huge_text_is_quick():
    assert len(wrap_text("x" * 1_000_000, num_columns=40, max_lines=2)) == 2


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (Segment(1, 7.5), (1, 7.5)),
        (Segment(-2, 50), (0, 10)),
        (Segment(3, 3), (3, 3)),
        (Segment(7, 3), None),
        (Segment(12, 15), None),
        (Segment(math.nan, 3), None),
        (Segment(1, math.inf), None),
        (None, None),
    ],
)
def test_visible_part(segment: Segment | None, expected: tuple[float, float] | None):
    assert visible_part(segment, 10.0) == expected


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (None, "no segment found in the answer"),
        (Segment(1, 7.5), "1.0 – 7.5 s"),
        (Segment(7.5, 1), "7.5 – 1.0 s  (reversed)"),
        (Segment(12, 15), "12.0 – 15.0 s  (outside the clip)"),
        (Segment(1, 15), "1.0 – 15.0 s  (clip ends at 10.0 s)"),
        (Segment(1, 10.1), "1.0 – 10.1 s"),
    ],
)
def test_describe_segment(segment: Segment | None, expected: str):
    assert describe_segment(segment, 10.0) == expected
