"""Reward for boundaries close to the true ones; above 0 for every segment, however far off."""

from __future__ import annotations

import math

from tvg.core.interval import boundary_distance
from tvg.core.parsing import ParsedAnswer
from tvg.types import Segment


class BoundaryReward:
    """exp(-sharpness * W1 / |truth|).

    W1 is the mean distance of both ends, |truth| the length of the true segment. The value is in
    [0, 1]: 1 for the true segment, exp(-sharpness) if both ends are off by its length. It is dense
    where IoU is flat 0. A missing, reversed or empty prediction gets 0.

    Based on the boundary-distance reward of TimeLens2. Its release uses uniform distributions over
    the segments instead of their ends, the length of the union instead of the true length, and a
    sharpness of 3.

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
