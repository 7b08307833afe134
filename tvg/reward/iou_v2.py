"""Reward for the overlap with the true segment and for boundaries close to the true ones."""

from __future__ import annotations

from typing import Literal

from tvg.core.interval import segment_iou
from tvg.core.parsing import ParsedAnswer
from tvg.types import GroundingExample, Segment


class IoUV2Reward:
    """IoU * (1 - |s - s'| / T) * (1 - |e - e'| / T), where T is the length of the clip.

    This is the timestamp-aware IoU of Time-R1 (arXiv 2503.13377). As published, it is not clamped:
    an overlapping prediction can get a negative reward if its end is off by more than the clip's
    length.

    Args:
        duration: "clip": T is the length read from the file. "annotation": T is the annotated
            length, as in the release, or the file's length if none is annotated.
    """

    def __init__(self, *, duration: Literal["clip", "annotation"] = "clip") -> None:
        if duration not in ("clip", "annotation"):
            raise ValueError(
                f"reward.iou_v2.reward.duration: expected clip or annotation, got {duration!r}"
            )
        self.duration = duration

    def __call__(
        self,
        *,
        answers: list[ParsedAnswer],
        truths: list[Segment],
        durations_s: list[float],
        examples: list[GroundingExample],
    ) -> list[float]:
        if self.duration == "annotation":
            durations_s = [
                found_s if example.duration_s is None else example.duration_s
                for example, found_s in zip(examples, durations_s, strict=True)
            ]
        return [
            _timestamp_aware_iou(answer.segment, truth, duration_s)
            for answer, truth, duration_s in zip(answers, truths, durations_s, strict=True)
        ]


def _timestamp_aware_iou(pred: Segment | None, truth: Segment, duration_s: float) -> float:
    if not duration_s > 0:
        raise ValueError(f"duration_s of the clip must be positive: got {duration_s}")
    iou = segment_iou(pred, truth)
    if pred is None or iou == 0:
        return 0.0
    start_miss = abs(pred.start_s - truth.start_s) / duration_s
    # Multiply before dividing: with T < 1, an end near the largest float could overflow.
    iou_times_end_miss = iou * abs(pred.end_s - truth.end_s) / duration_s
    return (iou - iou_times_end_miss) * (1 - start_miss)
