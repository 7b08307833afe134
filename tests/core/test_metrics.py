"""Tests of recalls, mIoU and their intervals with hand-computed numbers."""

import json
import math
from fractions import Fraction

import pytest

from tvg.core.metrics import grounding_metrics, paired_bootstrap


def test_metrics_by_hand() -> None:
    ious = [0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 1.0, 0.0]
    parsed = [False, True, True, True, True, True, True, True]
    metrics = grounding_metrics(ious, parsed)
    assert metrics["n"] == 8
    assert metrics["miou"] == pytest.approx(3.2 / 8)
    # An IoU that equals the threshold counts.
    assert metrics["r1_iou_0.3"] == 5 / 8
    assert metrics["r1_iou_0.5"] == 4 / 8
    assert metrics["r1_iou_0.7"] == 2 / 8
    assert metrics["parse_rate"] == 7 / 8
    names = ["miou", "r1_iou_0.3", "r1_iou_0.5", "r1_iou_0.7", "parse_rate"]
    assert list(metrics) == ["n", *names, "ci95"]
    assert list(metrics["ci95"]) == names
    for name in names:
        low, high = metrics["ci95"][name]
        assert 0 <= low <= metrics[name] <= high <= 1
    assert json.loads(json.dumps(metrics)) == metrics


def test_exact_format_rate_by_hand() -> None:
    metrics = grounding_metrics([0.5, 0.5], [True, True], exact_format=[True, False])
    assert (metrics["parse_rate"], metrics["exact_format_rate"]) == (1.0, 0.5)
    assert list(metrics["ci95"]) == [name for name in metrics if name not in ("n", "ci95")]
    assert "exact_format_rate" not in grounding_metrics([0.5], [True])
    with pytest.raises(ValueError, match="got 1 IoUs, 1 parsed and 2 exact_format flags"):
        grounding_metrics([0.5], [True], exact_format=[True, False])


def test_recalls_compare_without_rounding() -> None:
    """An IoU of exactly the threshold counts; a value 1e-12 below it does not."""
    tie, below, above = (
        Fraction(7, 10),
        Fraction(7, 10) - Fraction(1, 10**12),
        Fraction(7001, 10**4),
    )
    for iou, hit, strict_hit in ((tie, 1, 0), (below, 0, 0), (above, 1, 1)):
        assert grounding_metrics([iou], [True])["r1_iou_0.7"] == hit
        assert grounding_metrics([iou], [True], strict=True)["r1_iou_0.7"] == strict_hit
    floats = [0.3, math.nextafter(0.3, 0), 0.3 - 1e-10, 0.1 + 0.2]
    assert grounding_metrics(floats, [True] * 4)["r1_iou_0.3"] == 2 / 4


def test_recalls_use_the_given_thresholds() -> None:
    metrics = grounding_metrics([0.2, 0.9], [True, True], thresholds=(0.05, 0.95))
    assert metrics["r1_iou_0.05"] == 1.0
    assert metrics["r1_iou_0.95"] == 0.0
    assert "r1_iou_0.5" not in metrics


def test_interval_is_close_to_normal_approximation() -> None:
    # 400 queries, half of them right: 0.5 +- 1.96 * sqrt(0.25 / 400) = 0.5 +- 0.049.
    metrics = grounding_metrics([0.0, 1.0] * 200, [True] * 400, resamples=4000)
    for name in ("miou", "r1_iou_0.5"):
        low, high = metrics["ci95"][name]
        assert low == pytest.approx(0.451, abs=0.004)
        assert high == pytest.approx(0.549, abs=0.004)
    assert metrics["ci95"]["parse_rate"] == [1.0, 1.0]


def test_equal_seeds_give_equal_intervals() -> None:
    ious = [(7 * n % 50) / 50 for n in range(50)]
    first = grounding_metrics(ious, [True] * 50, seed=3)
    assert grounding_metrics(ious, [True] * 50, seed=3) == first
    assert grounding_metrics(ious, [True] * 50, seed=4)["ci95"] != first["ci95"]


def test_interval_of_many_queries_uses_all_blocks() -> None:
    # So many queries are resampled in several blocks, to limit memory. The interval must use the
    # resamples of every block.
    ious = [0.0, 1.0] * 5000
    low, high = grounding_metrics(ious, [True] * 10_000, resamples=300)["ci95"]["miou"]
    assert low == pytest.approx(0.5 - 0.0098, abs=0.002)
    assert high == pytest.approx(0.5 + 0.0098, abs=0.002)


def test_interval_of_one_query_has_no_width() -> None:
    metrics = grounding_metrics([0.6], [True])
    assert metrics["ci95"]["miou"] == pytest.approx([0.6, 0.6])
    assert metrics["r1_iou_0.5"] == 1.0


def test_paired_gain_by_hand() -> None:
    gain = paired_bootstrap([0.1, 0.5, 0.9], [0.3, 0.5, 0.8], seed=0, resamples=500)
    assert gain["miou"] == pytest.approx((0.2 + 0.0 - 0.1) / 3)
    low, high = gain["ci95"]
    # The extreme resamples contain one query three times.
    assert -0.1 - 1e-12 <= low < gain["miou"] < high <= 0.2 + 1e-12
    assert paired_bootstrap([0.1, 0.5, 0.9], [0.3, 0.5, 0.8], seed=0, resamples=500) == gain


def test_pairing_removes_common_variance() -> None:
    before = [(7 * n % 50) / 100 for n in range(50)]
    after = [iou + 0.25 for iou in before]
    gain = paired_bootstrap(before, after)
    assert gain["miou"] == pytest.approx(0.25)
    assert gain["ci95"] == pytest.approx([0.25, 0.25])
    assert paired_bootstrap(after, before)["miou"] == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("ious", "parsed", "named"),
    [
        ([], [], "at least one query"),
        ([0.5], [True, True], "1 IoUs, 2 parsed flags"),
        ([0.5, math.nan], [True, True], "query 1"),
        ([-0.5], [True], "query 0"),
        ([1.5], [True], "query 0"),
    ],
)
def test_invalid_ious_or_flags_are_named(ious: list[float], parsed: list[bool], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        grounding_metrics(ious, parsed)


def test_invalid_pairs_are_named() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        paired_bootstrap([0.1], [0.1, 0.2])
    with pytest.raises(ValueError, match="NaN"):
        paired_bootstrap([0.1], [math.nan])
    with pytest.raises(ValueError, match="resamples"):
        paired_bootstrap([0.1], [0.2], resamples=0)


def test_strict_recall_excludes_the_threshold():
    ious = [0.3, 0.5, 0.7, Fraction(3, 10), 0.71]
    names = [f"r1_iou_{threshold}" for threshold in (0.3, 0.5, 0.7)]
    assert [grounding_metrics(ious, [True] * 5)[n] for n in names] == [1.0, 0.6, 0.4]
    strict = grounding_metrics(ious, [True] * 5, strict=True)
    assert [strict[n] for n in names] == [0.6, 0.4, 0.2]
