"""Tests of answer parsing: typical answers, junk, and the published patterns."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvg.core.parsing import ParsedAnswer, has_format, parse_answer
from tvg.types import Segment

RANGES = [
    ("5 to 11", 5, 11),
    ("12.54 to 17.83", 12.54, 17.83),
    ("5.0s to 11.6s", 5, 11.6),
    ("5.0 s to 11.6 s", 5, 11.6),
    ("5s - 11s", 5, 11),
    ("5.0 seconds to 11.6 seconds", 5, 11.6),
    ("from 5 to 11.6 seconds", 5, 11.6),
    ("between 5 and 11.6", 5, 11.6),
    ("5 seconds and 11.6 secs", 5, 11.6),
    ("5 sec TO 11.6 SECONDS.", 5, 11.6),
    ("5-11.6", 5, 11.6),
    ("5.0s - 11.6s", 5, 11.6),
    ("5 \u2013 11.6", 5, 11.6),
    ("5 \u2014 11.6", 5, 11.6),
    ("5 ~ 11.6", 5, 11.6),
    ("5 until 11.6", 5, 11.6),
    ("5. to 11.", 5, 11),
    ("5\nto\n11.6", 5, 11.6),
    ("00:05 - 00:11", 5, 11),
    ("1:05 to 1:11.5", 65, 71.5),
    ("00:00:05 to 00:00:11.5", 5, 11.5),
    ("10:75 to 80", 75, 80),  # not a clock time
    ("01:02:03.5 to 01:02:10", 3723.5, 3730),
    ("11 to 5", 11, 5),  # reversed: kept; its score is 0
    ("0 to 0", 0, 0),
    ("1 to 2 or rather 3 to 4", 3, 4),  # the last range counts
    ("1 to 2 to 3", 1, 2),  # ranges do not overlap
    ("1 to 2 to 3 to 4", 3, 4),
    ("option 2: 3 to 4", 3, 4),
]
NO_RANGES = [
    "",
    "5",
    "5 11",
    "5 / 11",
    "to 11",
    "from 5 to",
    "5 to eleven",
    "5, 11",
    "5 to to 11",
    "10:75",
    "5" + " " * 40 + "to 11",
    "9" * 400 + " to 5",  # not a finite number
]


@pytest.mark.parametrize(("answer", "start", "end"), RANGES)
def test_range_in_answer_is_parsed(answer: str, start: float, end: float) -> None:
    parsed = parse_answer(f"<answer>{answer}</answer>")
    assert parsed.segment is not None
    assert tuple(parsed.segment) == pytest.approx((start, end))


@pytest.mark.parametrize("answer", NO_RANGES)
def test_answer_without_range_has_no_segment(answer: str) -> None:
    parsed = parse_answer(f"<answer> {answer} </answer>")
    assert parsed == ParsedAnswer(segment=None, thought=None, answer=answer)


def test_completion_is_split_into_thought_and_answer() -> None:
    thought = "It starts at <timestep>2.00 to 9.00</timestep>."
    text = f"<think>\n{thought}\n</think> <answer>12.54 to 17.83</answer>"
    assert parse_answer(text) == ParsedAnswer(
        segment=Segment(12.54, 17.83),
        thought=thought,
        answer="12.54 to 17.83",
    )


def test_last_closed_answer_block_counts() -> None:
    text = "<answer>1 to 2</answer> no: <answer>3 to 4</answer> or <answer>5 to 6"
    assert parse_answer(text).segment == Segment(3, 4)
    assert parse_answer("<answer>1 to 2</answer> <answer>none</answer>").segment is None
    assert parse_answer("</answer> 1 to 2 <answer>").answer is None
    nested = "<answer>1 to 2 <answer>3 to 4</answer> 5 to 6</answer>"
    assert parse_answer(nested).answer == "1 to 2 <answer>3 to 4"


def test_text_outside_answer_block_is_fallback() -> None:
    text = "<think>1 to 2</think> <answer>{}</answer> 5 to 6"
    assert parse_answer(text.format("3 to 4"), anywhere=True).segment == Segment(3, 4)
    assert parse_answer(text.format("none"), anywhere=True).segment == Segment(5, 6)
    assert parse_answer(text.format("none")).segment is None
    assert parse_answer("from 5 to 6", anywhere=True).segment == Segment(5, 6)
    assert parse_answer("from 5 to 6").segment is None


FORMATS = [
    # text, has format with thought, has format without thought
    ("<think>a</think><answer>b</answer>", True, False),
    ("  <think>a\nb</think>\n\n<answer>c\n</answer>\n", True, False),
    ("<think></think><answer></answer>", True, False),
    ("<answer>b</answer>", False, True),
    ("<answer></answer>", False, True),
    ("<answer>", False, False),
    ("</answer>", False, False),
    ("<answer></answer", False, False),
    ("<think>a</think> and <answer>b</answer>", False, False),
    ("<think>a</think><answer>b</answer> end", False, False),
    ("x <think>a</think><answer>b</answer>", False, False),
    ("<answer>b</answer><think>a</think>", False, False),
    ("<think>a<answer>b</answer>", False, False),
    ("<think></think><answer>", False, False),
    ("<think>a</think><answer></think></answer>", True, False),
    ("<think>a</think><answer></answer><answer></answer>", True, False),
    ("<THINK>a</THINK><ANSWER>b</ANSWER>", False, False),
    ("", False, False),
]


@pytest.mark.parametrize(("text", "with_thought", "without"), FORMATS)
def test_format_with_and_without_thought(text: str, with_thought: bool, without: bool) -> None:
    assert has_format(text, think=True) is with_thought
    assert has_format(text, think=False) is without


pieces = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "a", "5", "5.5", " to ", "."]
)
THINK_PATTERN = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
ANSWER_PATTERN = re.compile(r"<answer>.*?</answer>", re.DOTALL)


@settings(deadline=None)  # a busy machine must not fail the test
@given(st.lists(pieces, max_size=14).map("".join))
def test_format_equals_published_pattern(text: str) -> None:
    assert has_format(text, think=True) == bool(THINK_PATTERN.fullmatch(text.strip()))
    assert has_format(text, think=False) == bool(ANSWER_PATTERN.fullmatch(text.strip()))


@settings(deadline=None)  # a busy machine must not fail the test
@given(st.text(alphabet="<>/thinkaswer ", max_size=30), st.lists(pieces, max_size=6).map("".join))
def test_answer_block_equals_published_pattern(junk: str, text: str) -> None:
    text = f"<think>{text}</think>{junk}<answer>{text}</answer>{junk}"
    blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    assert parse_answer(text).answer == blocks[-1].strip()


plain_number = st.from_regex(r"[0-9]{1,4}(\.[0-9]{0,3})?", fullmatch=True)
word_between = st.sampled_from([" to ", " and ", " TO ", ", then ", " / ", " "])


@settings(deadline=None)  # a busy machine must not fail the test
@given(st.lists(st.tuples(plain_number, word_between), min_size=1, max_size=8))
def test_plain_seconds_equal_published_pattern(parts: list[tuple[str, str]]) -> None:
    text = "".join(number + word for number, word in parts)
    published = re.findall(r"(\d+\.?\d*) (to|and) (\d+\.?\d*)", text, re.IGNORECASE)
    expected = Segment(float(published[-1][0]), float(published[-1][2])) if published else None
    assert parse_answer(f"<answer>{text}</answer>").segment == expected


@settings(deadline=None)  # a busy machine must not fail the test
@given(st.text(max_size=200) | st.lists(pieces, max_size=30).map("".join), st.booleans())
def test_parsing_any_text_never_raises(text: str, anywhere: bool) -> None:
    parsed = parse_answer(text, anywhere=anywhere)
    if parsed.segment is not None:
        assert all(0 <= time_s < float("inf") for time_s in parsed.segment)
    has_format(text, think=anywhere)


two_decimals = st.integers(0, 99_999).map(lambda n: n / 100)


@settings(deadline=None)  # a busy machine must not fail the test
@given(two_decimals, two_decimals, st.text(alphabet="abc 0123456789.:-<>", max_size=80))
def test_target_is_parsed_after_any_thought(start: float, end: float, junk: str) -> None:
    text = f"<think>{junk}</think> <answer>{start:.2f} to {end:.2f}</answer>"
    parsed = parse_answer(text)
    assert parsed.segment == Segment(start, end)
    assert parsed.thought == junk.strip()
    assert has_format(text, think=True)


LONG_JUNK = [
    "9" * 10_000,
    "9." * 5_000,
    "1 to " * 2_000,
    "1:11:" * 2_000,
    "1" + " " * 9_999,
    "1 s " * 2_500,
    "<answer>" * 1_250,
    "<answer>5 to 6</answer>" * 500,
    "<think>" * 700 + "</think> " * 500,
    "</think><answer>" * 600,
]


@pytest.mark.parametrize("junk", LONG_JUNK, ids=lambda junk: repr(junk[:12]))
def test_parsing_long_junk_terminates(junk: str) -> None:
    # On some of these, a backtracking pattern would exceed the time limit of the tests.
    text = f"<think>{junk}<answer>{junk} 7 to 8</answer>"
    assert parse_answer(text, anywhere=True).segment is not None
    assert has_format(text, think=True) is ("</think>" in junk)
