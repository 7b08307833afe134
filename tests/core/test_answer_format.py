"""Tests of the exact answer format, which is stricter than the parsers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvg.core.answer_format import answer_pattern, is_exact
from tvg.core.parsing import parse_answer

SHORT = "<answer>{start_s:.1f} to {end_s:.1f}</answer>"
THINK = "<think>At {start_s:.0f}.</think> <answer>{start_s:.2f} to {end_s:.2f}</answer>"


@pytest.mark.parametrize(
    ("text", "exact", "is_read"),
    [
        ("<answer>1.2 to 6.0</answer>", True, True),
        (" <answer>1.2 to 6.0</answer>\n", True, True),
        ("<answer>8.0 to 1.2</answer>", True, True),  # reversed segment in the exact format
        ("<answer>1.2 to 6 6</answer>", False, True),  # the demo's policy drifted to this
        ("<answer>1.2 to 6.0.</answer>", False, True),
        ("<answer>1.2 to 6.0 seconds</answer>", False, True),
        ("<answer>1.2 to 6</answer>", False, True),
        ("<answer>1.20 to 6.0</answer>", False, True),
        ("<answer>1.2 and 6.0</answer>", False, True),
        ("<answer> 1.2 to 6.0 </answer>", False, True),
        ("<answer>1.2 to 6.0</answer>.", False, True),
        ("so <answer>1.2 to 6.0</answer>", False, True),
        ("<answer>1.2 to 6.0</answer><answer>1.2 to 6.0</answer>", False, True),
        ("1.2 to 6.0", False, False),
        ("<answer>\u0661.2 to 6.0</answer>", False, True),  # read as 2 to 6
        (f"<answer>{'9' * 400}.0 to 6.0</answer>", False, False),
        ("", False, False),
    ],
)
def test_exact_format_of_answer_without_thought(text: str, exact: bool, is_read: bool) -> None:
    assert is_exact(text, answer_pattern(SHORT), think=False) is exact
    assert (parse_answer(text).segment is not None) is is_read


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("<think>At 1.</think> <answer>1.20 to 6.00</answer>", True),
        ("<think>any\nthought</think>\n<answer>1.20 to 6.00</answer>", True),
        ("<think></think><answer>1.20 to 6.00</answer>", True),
        ("<think>At 1.</think> <answer>1.2 to 6.0</answer>", False),
        ("<answer>1.20 to 6.00</answer>", False),
        ("<think>a</think>b<answer>1.20 to 6.00</answer>", False),
        ("<think>a</think><think>b</think><answer>1.20 to 6.00</answer>", False),
        ("<think>a<answer>1.20 to 6.00</answer></think><answer>1.20 to 6.00</answer>", False),
        ("<think><answer>1.20 to 6.00</answer>", False),
    ],
)
def test_exact_format_of_thought_and_answer(text: str, exact: bool) -> None:
    assert is_exact(text, answer_pattern(THINK), think=True) is exact


def test_exact_option_letter_needs_parentheses() -> None:
    for text, exact in [("<answer>(B)</answer>", True), ("<answer>B</answer>", False)]:
        assert is_exact(text, answer_pattern(None), think=False) is exact


@pytest.mark.parametrize(
    ("answer_format", "text", "other"),
    [
        ("[{start_s:.0f}-{end_s:.0f}]", "[3-12]", "[3.0-12]"),
        ("<answer>{start_s} to {end_s}</answer>", "<answer>3.25 to 12</answer>", "3.25 to 12"),
        ("<answer>{{{start_s:.1f}, {end_s:.1f}}}</answer>", "<answer>{3.0, 4.5}</answer>", "{3.0}"),
    ],
)
def test_custom_answer_formats(answer_format: str, text: str, other: str) -> None:
    pattern = answer_pattern(answer_format)
    assert is_exact(text, pattern, think=False)
    assert not is_exact(other, pattern, think=False)


@given(st.floats(0, 9999), st.floats(0, 9999))
def test_every_target_has_exact_format(start_s: float, end_s: float) -> None:
    for answer_format, think in ((SHORT, False), (THINK, True)):
        target = answer_format.format(start_s=start_s, end_s=end_s)
        assert is_exact(target, answer_pattern(answer_format), think=think)


@given(st.text(max_size=60))
def test_format_check_of_any_text_never_raises(text: str) -> None:
    assert is_exact(text, answer_pattern(THINK), think=True) in (True, False)
    assert not is_exact(text + "x", answer_pattern(SHORT), think=False)
