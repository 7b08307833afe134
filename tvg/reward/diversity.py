"""Reward for differing from the other completions of the group."""

from __future__ import annotations

from tvg.core.text import rouge_l, words


class DiversityReward:
    """Mean of 1 - ROUGE-L over the other completions of the group; in [0, 1].

    ROUGE-L is the F1 of the longest common subsequence of words (lower case, not stemmed). Only the
    first `max_words` words of each completion are compared. A group of G completions therefore
    needs G * (G - 1) / 2 comparisons of at most `max_words` steps each, even for long texts.

    Args:
        max_words: words compared per completion, at least 1.
    """

    def __init__(self, *, max_words: int) -> None:
        if max_words < 1:
            raise ValueError(
                f"reward.diversity.reward.max_words: expected at least 1, got {max_words}"
            )
        self.max_words = max_words

    def __call__(self, *, texts: list[str], group_size: int) -> list[float]:
        groups = range(0, len(texts), group_size)
        return [value for first in groups for value in self._of(texts[first : first + group_size])]

    def _of(self, group: list[str]) -> list[float]:
        """Returns the values of one group; 0 for a group of one."""
        found = [words(text, max_words=self.max_words) for text in group]
        sums = [0.0] * len(group)
        for i in range(len(group)):
            for j in range(i):
                distance = 1 - rouge_l(found[i], found[j])
                sums[i] += distance
                sums[j] += distance
        return [value / max(1, len(group) - 1) for value in sums]
