"""Splits batches of prompts so that none has more tokens than a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tvg.data.collate import PromptCollator
from tvg.data.dataset import LeftOut, Sample
from tvg.types import PromptBatch

T = TypeVar("T")


class SplitBatch:
    """Batches whose clips were loaded together, in order.

    It has no method `to`: its parts are moved to the device one after the other.
    """

    def __init__(self, parts: Sequence[PromptBatch]) -> None:
        self.parts = tuple(parts)


class SplitCollator:
    """Collates samples into as few batches as the budget allows; keeps their order.

    Args:
        collator: makes one batch.
        max_tokens: largest number of prompt tokens in a batch, padding included. A prompt with more
            tokens is a batch of its own.
    """

    def __init__(self, collator: PromptCollator, max_tokens: int) -> None:
        self.collator = collator
        self.max_tokens = max_tokens

    def __call__(self, items: Sequence[Sample | LeftOut]) -> SplitBatch:
        lengths = [
            self.collator.num_prompt_tokens(item) if isinstance(item, Sample) else 0
            for item in items
        ]
        parts = runs_within(items, lengths, self.max_tokens)
        return SplitBatch([self.collator(part) for part in parts])


def runs_within(items: Sequence[T], lengths: Sequence[int], budget: int) -> list[list[T]]:
    """Splits items into runs with `number of items * largest length <= budget`.

    Args:
        items: the items, in order.
        lengths: the length of each item; items of length 0 need no room.
        budget: an item that is longer than the budget is alone in its run.
    """
    runs: list[list[T]] = []
    num, longest = 0, 0  # of the last run, without items of length 0
    for item, length in zip(items, lengths, strict=True):
        num_with = num + (length > 0)
        is_over = num_with * max(longest, length) > budget and num > 0 and length > 0
        if not runs or is_over:
            runs.append([])
            num, longest, num_with = 0, 0, int(length > 0)
        runs[-1].append(item)
        num, longest = num_with, max(longest, length)
    return runs


def parts_of(batch: PromptBatch | SplitBatch) -> Sequence[PromptBatch]:
    """Returns the batches of a split batch, or the batch itself."""
    return batch.parts if isinstance(batch, SplitBatch) else (batch,)
