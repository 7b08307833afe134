"""Rewards for following the answer format: the tags only, or the exact format."""

from __future__ import annotations

from tvg.core.parsing import has_format


class FormatReward:
    """1 if a completion consists of a think block and an answer block, otherwise 0.

    The content of the blocks is not checked, as in Time-R1.

    Args:
        think: False for prompts that request only the answer block.
    """

    def __init__(self, *, think: bool) -> None:
        self.think = think

    def __call__(self, *, texts: list[str]) -> list[float]:
        return [float(has_format(text, think=self.think)) for text in texts]


class ExactFormatReward:
    """1 if a completion has exactly the format that the prompt requests, otherwise 0.

    The answer must match `prompt.answer_format`, including the number of decimals
    (`tvg.core.answer_format`). The parsers are more tolerant. Without this reward, a policy can
    drift into other formats that the parsers accept.
    """

    def __call__(self, *, is_exact: list[bool]) -> list[float]:
        return [float(flag) for flag in is_exact]
