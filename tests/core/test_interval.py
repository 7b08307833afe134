"""Tests of temporal IoU, generalised IoU and boundary distance with hand-computed numbers."""

import math
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvg.core.interval import (
    boundary_distance,
    exact_iou,
    segment_giou,
    segment_iou,
    temporal_iou,
)
from tvg.core.metrics import grounding_metrics
from tvg.types import Segment

NAN, INF = math.nan, math.inf

CASES = [
    ((0, 10), (0, 10), 1.0),
    ((0, 10), (5, 15), 5 / 15),
    ((2, 4), (0, 10), 2 / 10),
    ((0, 5), (3, 13), 2 / (5 + 10 - 2)),
    ((0, 4), (6, 10), 0.0),
    ((0, 2), (8, 10), 0.0),
    ((0, 5), (5, 10), 0.0),  # touching
    ((5, 0), (0, 5), 0.0),  # reversed prediction
    ((0, 5), (5, 0), 0.0),  # reversed truth
    ((5, 0), (5, 0), 0.0),  # both reversed
    ((3, 3), (3, 3), 0.0),  # empty
    ((3, 3), (0, 10), 0.0),
    ((NAN, 5), (0, 5), 0.0),
    ((0, NAN), (0, 5), 0.0),
    ((0, 5), (NAN, NAN), 0.0),
    ((0, INF), (0, 5), 0.0),
    ((0, INF), (0, INF), 0.0),
    ((-INF, INF), (0, 5), 0.0),
    ((-1.7e308, 1.7e308), (-1.7e308, 1.7e308), 0.0),  # the length overflows
]

seconds = st.floats(allow_nan=True, allow_infinity=True)
sane_seconds = st.integers(0, 10_000).map(lambda n: n / 16)  # sums and differences are exact


@pytest.mark.parametrize(("pred", "truth", "expected"), CASES)
def test_iou_by_hand(
    pred: tuple[float, float], truth: tuple[float, float], expected: float
) -> None:
    as_tensor = temporal_iou(
        torch.tensor(pred, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64)
    )
    assert as_tensor.item() == pytest.approx(expected, abs=1e-15)
    assert segment_iou(Segment(*pred), Segment(*truth)) == pytest.approx(expected, abs=1e-15)


def test_iou_of_missing_segment_is_zero() -> None:
    assert segment_iou(None, Segment(0, 1)) == 0.0
    assert segment_iou(Segment(0, 1), None) == 0.0
    assert segment_iou(None, None) == 0.0


def test_iou_broadcasts_and_accepts_integers() -> None:
    pred = torch.tensor([[[0, 10], [5, 15]], [[20, 30], [15, 5]]])
    iou = temporal_iou(pred, torch.tensor([0, 10]))
    torch.testing.assert_close(iou, torch.tensor([[1.0, 1 / 3], [0.0, 0.0]]))


def test_gradients_are_finite_for_invalid_segments() -> None:
    pred = torch.tensor([[0.0, 10.0], [5.0, 5.0], [7.0, 2.0]], requires_grad=True)
    temporal_iou(pred, torch.tensor([5.0, 15.0])).sum().backward()
    assert pred.grad is not None
    # IoU = (e - 5) / (15 - s): d/ds = 5 / 225, d/de = 1 / 15.
    torch.testing.assert_close(pred.grad[0], torch.tensor([5 / 225, 1 / 15]))
    assert torch.isfinite(pred.grad).all()
    empty = torch.tensor([[5.0, 5.0]], requires_grad=True)
    temporal_iou(empty, torch.tensor([5.0, 5.0])).sum().backward()  # the union is 0 s
    assert empty.grad is not None
    assert empty.grad.eq(0).all()


@settings(deadline=None)  # a busy machine must not fail the test
@given(seconds, seconds, seconds, seconds)
def test_iou_of_any_floats_is_between_0_and_1(a: float, b: float, c: float, d: float) -> None:
    iou = segment_iou(Segment(a, b), Segment(c, d))
    assert 0 <= iou <= 1
    pair = torch.tensor([[a, b], [c, d]], dtype=torch.float64)
    assert temporal_iou(pair[0], pair[1]).item() == iou


@settings(deadline=None)  # a busy machine must not fail the test
@given(sane_seconds, sane_seconds, sane_seconds, sane_seconds, st.integers(-50, 50))
def test_iou_is_symmetric_and_shift_invariant(
    a: float, b: float, c: float, d: float, by: int
) -> None:
    first, second = Segment(a, b), Segment(c, d)
    assert segment_iou(first, second) == segment_iou(second, first)
    assert segment_iou(first, first) == float(a < b)
    shifted = segment_iou(Segment(a + by, b + by), Segment(c + by, d + by))
    assert shifted == segment_iou(first, second)


GENERALISED = [
    ((0, 10), (0, 10), 1.0),
    ((0, 10), (5, 15), 5 / 15),  # equals IoU for overlapping segments
    ((0, 5), (5, 10), 0.0),  # touching
    ((0, 4), (6, 10), -2 / 10),  # the gap's share of the hull
    ((0, 2), (8, 10), -6 / 10),
    ((0, 1e-6), (1e6, 1e6 + 1e-6), -1.0),  # approaches -1
    ((5, 0), (0, 5), -1.0),  # reversed
    ((3, 3), (0, 10), -1.0),  # empty
    ((NAN, 5), (0, 5), -1.0),
    ((0, INF), (0, 5), -1.0),
    ((-1.7e308, 1.7e308), (0, 5), -1.0),  # the hull overflows
]


@pytest.mark.parametrize(("a", "b", "giou"), GENERALISED)
def test_generalised_iou_by_hand(a, b, giou):
    assert segment_giou(Segment(*a), Segment(*b)) == pytest.approx(giou, abs=1e-9)
    assert segment_giou(Segment(*b), Segment(*a)) == pytest.approx(giou, abs=1e-9)


def test_generalised_iou_of_missing_segment_is_minus_one():
    assert segment_giou(None, Segment(0, 1)) == segment_giou(Segment(0, 1), None) == -1.0


@settings(deadline=None)  # a busy machine must not fail the test
@given(seconds, seconds, seconds, seconds)
def test_generalised_iou_is_symmetric_and_equals_iou_for_overlaps(a0, a1, b0, b1):
    a, b = Segment(a0, a1), Segment(b0, b1)
    giou, iou = segment_giou(a, b), segment_iou(a, b)
    assert -1 <= giou <= 1
    assert giou == segment_giou(b, a)
    if iou > 0 and giou != -1:
        assert giou == iou


def test_boundary_distance_by_hand():
    assert boundary_distance(Segment(4, 12), Segment(4, 12)) == 0
    assert boundary_distance(Segment(4, 12), Segment(6, 14)) == 2
    assert boundary_distance(Segment(4, 12), Segment(8, 12)) == 2  # (4 + 0) / 2
    assert boundary_distance(Segment(0, 10), Segment(2, 8)) == 2  # (2 + 2) / 2


def iou_of_hundredths(a: tuple[int, int], b: tuple[int, int]) -> Fraction:
    """Returns the exact IoU of segments given in integer hundredths of a second."""
    inter = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return Fraction(inter, a[1] - a[0] + b[1] - b[0] - inter)


def test_exact_iou_at_recall_threshold_counts() -> None:
    # 3.5 / 5.0; in floats, (6.8 - 3.3) / (8.3 - 3.3) is 0.6999999999999998.
    assert exact_iou(Segment(3.3, 6.8), Segment(3.3, 8.3)) == Fraction(7, 10)
    rng = random.Random(0)
    num_ties = num_wrong = 0
    for _ in range(3000):
        start, length = rng.randint(0, 9999), 10 * rng.randint(1, 400)
        share = rng.choice([3, 5, 7])
        truth = (start, start + length)
        pred = (start, start + length * share // 10 - rng.choice([0, 0, 1]))
        if pred[1] <= pred[0]:
            continue
        iou = iou_of_hundredths(pred, truth)
        segments = [Segment(*(hundredths / 100 for hundredths in pair)) for pair in (pred, truth)]
        assert exact_iou(*segments) == iou
        name, least = f"r1_iou_0.{share}", Fraction(share, 10)
        assert grounding_metrics([exact_iou(*segments)], [True], resamples=1)[name] == (
            iou >= least
        )
        num_ties += iou == least
        num_wrong += (segment_iou(*segments) >= share / 10) != (iou >= least)
    assert num_ties > 1000
    assert num_wrong > 100  # floats would decide these cases wrongly


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=4))
def test_exact_iou_equals_float_iou_up_to_rounding(ends: list[float]) -> None:
    a, b = Segment(*ends[:2]), Segment(*ends[2:])
    exact = exact_iou(a, b)
    assert 0 <= exact <= 1
    if all(abs(end) < 1e6 and round(end, 3) == end for end in ends):
        assert float(exact) == pytest.approx(segment_iou(a, b), abs=1e-6)


def test_exact_iou_of_missing_or_invalid_segment_is_zero() -> None:
    assert exact_iou(None, Segment(0, 1)) == exact_iou(Segment(0, 1), None) == 0
    assert exact_iou(Segment(0, INF), Segment(0, 1)) == exact_iou(Segment(2, 1), Segment(1, 2)) == 0
