"""Reward for the overlap with the true segment, or for closeness if there is no overlap."""

from __future__ import annotations

from tvg.core.interval import segment_giou
from tvg.core.parsing import ParsedAnswer
from tvg.types import Segment


class GIoUReward:
    """Generalised temporal IoU, in [-1, 1] (arXiv 1902.09630).

    Unlike IoU, this reward also ranks segments that do not overlap the true segment. The value is
    not rescaled: a segment that only touches the true one gets 0, and a completion without a valid
    segment gets -1.
    """

    def __call__(self, *, answers: list[ParsedAnswer], truths: list[Segment]) -> list[float]:
        return [
            segment_giou(answer.segment, truth)
            for answer, truth in zip(answers, truths, strict=True)
        ]
