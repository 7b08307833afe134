"""Reward for the overlap with the true segment."""

from __future__ import annotations

from tvg.core.interval import segment_iou
from tvg.core.parsing import ParsedAnswer
from tvg.types import Segment


class IoUReward:
    """Temporal IoU of prediction and truth; 0 for a missing, reversed or empty prediction."""

    def __call__(self, *, answers: list[ParsedAnswer], truths: list[Segment]) -> list[float]:
        return [
            segment_iou(answer.segment, truth)
            for answer, truth in zip(answers, truths, strict=True)
        ]
