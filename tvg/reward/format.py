"""Reward for keeping to the answer format."""

from __future__ import annotations

from tvg.core.parsing import has_format


class FormatReward:
    """1 for a completion that is exactly a think and an answer block, else 0.

    Args:
        think: False for prompts that ask for the answer block alone.
    """

    def __init__(self, *, think: bool) -> None:
        self.think = think

    def __call__(self, *, texts: list[str]) -> list[float]:
        return [float(has_format(text, think=self.think)) for text in texts]
