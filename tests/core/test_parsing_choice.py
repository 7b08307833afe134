"""Tests of parsing option letters in the forms that models write."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvg.core.parsing_choice import option_letter, parse_choice


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(B)", "B"),
        ("(b)", "B"),
        ("(B) opens the door", "B"),
        ("(A) or rather (C)", "C"),  # the last letter counts, as in the published code
        ("B", "B"),
        (" b ", "B"),
        ("B.", "B"),
        ("B: opens the door", "B"),
        ("c) opens the door", "C"),
        ("Option D", "D"),
        ("The best option is D.", "D"),
        ("Best answer: A", "A"),
        ("answer: (E)", "E"),
        ("A man opens the door", None),  # an article, not an option
        ("Opens the door", None),
        ("(opens)", None),
        ("12", None),
        ("", None),
    ],
)
def test_option_letter_is_parsed(answer: str, letter: str | None) -> None:
    assert option_letter(answer) == letter
    assert parse_choice(f"<think>(F)?</think> <answer>{answer}</answer> (G)") == letter


def test_last_answer_block_counts() -> None:
    assert parse_choice("<answer>(A)</answer> no, <answer>(B)</answer>") == "B"
    assert parse_choice("(A)") is None


@settings(deadline=None)  # the test must not fail on a busy machine
@given(st.text(max_size=80))
def test_parsing_any_text_never_raises(text: str) -> None:
    letter = parse_choice(f"<answer>{text}</answer>")
    assert letter is None or (len(letter) == 1 and letter.isupper())
