"""Measures how well two segments agree: IoU, generalised IoU and boundary distance."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from tvg.types import Segment


def temporal_iou(pred: Tensor, truth: Tensor) -> Tensor:
    """Returns the IoU of segments [start, end]: their intersection divided by their union.

    A reversed, empty or non-finite segment on either side scores 0, so the result is never NaN.

    Args:
        pred: [..., 2] seconds.
        truth: [..., 2] seconds; leading dimensions broadcast against those of `pred`.

    Returns:
        [...] in [0, 1], in the floating dtype of the inputs (float32 for integers).
    """
    pred, truth = torch.broadcast_tensors(pred, truth)
    if not pred.is_floating_point() and not truth.is_floating_point():
        pred, truth = pred.float(), truth.float()
    starts = torch.maximum(pred[..., 0], truth[..., 0])
    ends = torch.minimum(pred[..., 1], truth[..., 1])
    intersection = (ends - starts).clamp(min=0)
    pred_length, truth_length = pred[..., 1] - pred[..., 0], truth[..., 1] - truth[..., 0]
    union = pred_length + truth_length - intersection
    # Comparisons with NaN are false, and infinite lengths make the union non-finite.
    is_valid = (pred_length > 0) & (truth_length > 0) & torch.isfinite(union)
    iou = intersection / torch.where(is_valid, union, 1)
    return torch.where(is_valid, iou, 0)


def segment_iou(a: Segment | None, b: Segment | None) -> float:
    """Returns the IoU of two segments as `temporal_iou` does; a missing segment scores 0."""
    if a is None or b is None:
        return 0.0
    a_length, b_length = a[1] - a[0], b[1] - b[0]
    if not (a_length > 0 and b_length > 0):
        return 0.0
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = a_length + b_length - intersection
    return intersection / union if math.isfinite(union) else 0.0


def exact_iou(a: Segment | None, b: Segment | None) -> Fraction:
    """Returns the IoU of two segments, computed as in `segment_iou` but without rounding.

    Each time is read as the shortest decimal that represents its float: 3.3 is 33/10. Binary
    rounding therefore cannot move an IoU of exactly 0.7 below the threshold 0.7.
    """
    if a is None or b is None or not all(map(math.isfinite, (*a, *b))):
        return Fraction(0)
    (a_start, a_end), (b_start, b_end) = map(decimal_fraction, a), map(decimal_fraction, b)
    if not (a_end > a_start and b_end > b_start):
        return Fraction(0)
    intersection = max(Fraction(0), min(a_end, b_end) - max(a_start, b_start))
    return intersection / (a_end - a_start + b_end - b_start - intersection)


def decimal_fraction(number: float) -> Fraction:
    """Returns the shortest decimal that represents a finite float as a fraction: 0.3 is 3/10."""
    return Fraction(repr(float(number)))


def segment_giou(a: Segment | None, b: Segment | None) -> float:
    """Returns the generalised IoU of two segments, in [-1, 1] (arXiv 1902.09630, here in 1D).

    `IoU - (|hull| - |union|) / |hull|`. If the segments overlap or touch, this is their IoU;
    otherwise it is -gap / hull. A missing, reversed, empty or non-finite segment scores -1, the
    lower bound, so a missing answer never scores better than a wrong one.
    """
    if a is None or b is None or not (a[1] > a[0] and b[1] > b[0]):
        return -1.0
    hull = max(a[1], b[1]) - min(a[0], b[0])
    gap = max(0.0, max(a[0], b[0]) - min(a[1], b[1]))
    if not math.isfinite(hull):
        return -1.0
    return -gap / hull if gap > 0 else segment_iou(a, b)


def boundary_distance(a: Segment, b: Segment) -> float:
    """Returns the mean of the start distance and the end distance, in seconds.

    This is the Wasserstein-1 distance between the endpoints of `a` and the endpoints of `b`, each
    with mass 1/2. In one dimension, the optimal transport moves start to start and end to end.
    """
    return abs(a[0] - b[0]) / 2 + abs(a[1] - b[1]) / 2
