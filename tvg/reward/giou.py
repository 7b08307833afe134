"""Reward for the overlap with the true segment, or for closeness if there is no overlap."""

from __future__ import annotations

from tvg.core.interval import segment_giou
from tvg.core.parsing import ParsedAnswer
from tvg.types import Segment


class GIoUReward:
    """Generalised temporal IoU, in [-1, 1]: dense where IoU is flat 0 (arXiv 1902.09630).

    The value is not rescaled: a completion without a readable segment gets -1, a segment that only
    touches the true one gets 0.
    """

    def __call__(self, *, answers: list[ParsedAnswer], truths: list[Segment]) -> list[float]:
        return [
            segment_giou(answer.segment, truth)
            for answer, truth in zip(answers, truths, strict=True)
        ]
