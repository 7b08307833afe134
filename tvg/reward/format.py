"""Rewards for keeping to the answer format: to its tags, or to all of it."""

from __future__ import annotations

from tvg.core.parsing import has_format


class FormatReward:
    """1 for a completion that is exactly a think and an answer block, else 0.

    The content of the blocks does not count, as in Time-R1.

    Args:
        think: False for prompts that ask for the answer block alone.
    """

    def __init__(self, *, think: bool) -> None:
        self.think = think

    def __call__(self, *, texts: list[str]) -> list[float]:
        return [float(has_format(text, think=self.think)) for text in texts]


class ExactFormatReward:
    """1 for a completion in exactly the format that the prompt asks for, else 0.

    The answer itself counts: `prompt.answer_format`, to the digit after the point
    (`tvg.core.answer_format`). The parsers read more than that, so that without this reward a
    policy can drift into what they tolerate.
    """

    def __call__(self, *, is_exact: list[bool]) -> list[float]:
        return [float(flag) for flag in is_exact]
