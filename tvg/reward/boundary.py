"""Reward for boundaries close to the true ones, however far away."""

from __future__ import annotations

import math

from tvg.core.interval import boundary_distance
from tvg.core.parsing import ParsedAnswer
from tvg.types import Segment


class BoundaryReward:
    """exp(-sharpness * W1 / |truth|), W1 the mean distance of both ends, |truth| its length.

    In (0, 1]: 1 for the very segment, exp(-sharpness) where both ends are off by its length; dense
    where IoU is flat 0. After the boundary-distance reward of TimeLens2, whose release takes
    uniform distributions over the segments in the place of their ends, the length of the union in
    the place of the truth's, and a sharpness of 3. 0 for none, a reversed or an empty prediction.

    Args:
        sharpness: how fast the reward falls, above 0.
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
