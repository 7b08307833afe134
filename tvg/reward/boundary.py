"""Reward for boundaries close to the true ones, also without any overlap."""

from __future__ import annotations

import math

from tvg.core.interval import boundary_distance
from tvg.core.parsing import ParsedAnswer
from tvg.types import Segment


class BoundaryReward:
    """exp(-sharpness * W1 / |truth|).

    W1 is the mean of the start distance and the end distance. |truth| is the length of the true
    segment. The value is in [0, 1]: 1 for the true segment, and exp(-sharpness) if start and end
    are both off by |truth|. Unlike IoU, this reward also ranks segments that do not overlap the
    true segment. A missing, reversed or empty prediction gets 0.

    Based on the boundary-distance reward of TimeLens2. Its release uses uniform distributions over
    the segments instead of point masses at start and end, the length of the union instead of the
    true length, and a sharpness of 3.

    Args:
        sharpness: decay rate of the reward, above 0.
    """

    def __init__(self, *, sharpness: float) -> None:
        if not 0 < sharpness < math.inf:
            raise ValueError(
                f"reward.boundary.reward.sharpness: expected a number above 0, got {sharpness}"
            )
        self.sharpness = sharpness

    def __call__(self, *, answers: list[ParsedAnswer], truths: list[Segment]) -> list[float]:
        return [
            self._closeness(answer.segment, truth)
            for answer, truth in zip(answers, truths, strict=True)
        ]

    def _closeness(self, pred: Segment | None, truth: Segment) -> float:
        if pred is None or not (pred.length_s > 0 and truth.length_s > 0):
            return 0.0
        return math.exp(-self.sharpness * boundary_distance(pred, truth) / truth.length_s)
