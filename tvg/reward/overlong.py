"""Penalty for completions close to the length limit."""

from __future__ import annotations


class OverlongReward:
    """DAPO's soft overlong punishment, in [-1, 0] (arXiv 2503.14476, eq. 13).

    The value is 0 up to max_tokens - cache_tokens tokens, then falls linearly to -1 at max_tokens.

    Args:
        max_tokens: the sampler's length limit, at which the value is -1.
        cache_tokens: number of tokens before the limit over which the value falls from 0 to -1; in
            (0, max_tokens].
    """

    def __init__(self, *, max_tokens: int, cache_tokens: float) -> None:
        if not 0 < cache_tokens <= max_tokens:
            raise ValueError(
                "reward.overlong.reward.cache_tokens: expected more than 0 and at "
                f"most max_tokens ({max_tokens}), got {cache_tokens}"
            )
        self.max_tokens = max_tokens
        self.cache_tokens = cache_tokens

    def __call__(self, *, num_tokens: list[int]) -> list[float]:
        free = self.max_tokens - self.cache_tokens
        return [max(-1.0, min(0.0, (free - n) / self.cache_tokens)) for n in num_tokens]
