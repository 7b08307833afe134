"""Reward for the correct option of a multiple-choice question."""

from __future__ import annotations

from tvg.core.parsing_choice import option_letter, parse_choice
from tvg.types import GroundingExample


class ChoiceReward:
    """1 if the option letter in the answer block is correct, otherwise 0.

    Args:
        field: the annotation field (in `example.extra`) with the true option, as "B", "(B)" or
            "B. text of the option".
    """

    def __init__(self, *, field: str) -> None:
        self.field = field

    def __call__(self, *, texts: list[str], examples: list[GroundingExample]) -> list[float]:
        return [
            float(parse_choice(text) == self._truth(example))
            for text, example in zip(texts, examples, strict=True)
        ]

    def _truth(self, example: GroundingExample) -> str:
        found = example.extra.get(self.field)
        letter = None if found is None else option_letter(str(found))
        if letter is None:
            raise ValueError(
                f"reward.choice.reward.field: {example.qid} must have an option letter in "
                f"{self.field!r}: got {found!r}; its fields are {sorted(example.extra)}"
            )
        return letter
