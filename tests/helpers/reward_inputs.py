"""Builds the inputs of rewards from the texts of completions."""

from __future__ import annotations

from typing import Any

from tvg.core.answer_format import answer_pattern, is_exact
from tvg.core.parsing import parse_answer
from tvg.reward.base import Completions
from tvg.types import GroundingExample, Segment

TRUTH = Segment(0.0, 10.0)
EXACT = answer_pattern("<answer>{start_s:.2f} to {end_s:.2f}</answer>")


def make_completions(
    texts: list[str],
    *,
    truth: Segment | None = TRUTH,
    duration_s: float = 20.0,
    extra: dict[str, str | float] | None = None,
    **changes: Any,
) -> Completions:
    """Returns one group of completions of one query; each word counts as one token."""
    example = GroundingExample(
        qid="a:0",
        video="a",
        video_path=None,
        query="a person sits",
        segment=truth,
        duration_s=duration_s,
        extra=extra or {},
    )
    settings: dict[str, Any] = {
        "texts": texts,
        "answers": [parse_answer(text) for text in texts],
        "truths": [truth] * len(texts),
        "durations_s": [duration_s] * len(texts),
        "examples": [example] * len(texts),
        "num_tokens": [len(text.split()) for text in texts],
        "is_finished": [True] * len(texts),
        "is_exact": [is_exact(text, EXACT, think=True) for text in texts],
        "group_size": max(1, len(texts)),
    }
    return Completions(**{**settings, **changes})
