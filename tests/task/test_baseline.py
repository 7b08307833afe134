"""Tests of answers that ignore the video, against hand-computed numbers."""

import pytest

from tvg.task.baseline import best_constant_segment, blind_predictions, random_segments
from tvg.types import GroundingExample, Segment


def example(segment, duration_s=10.0, qid="v:0") -> GroundingExample:
    return GroundingExample(
        qid=qid,
        video="v",
        video_path=None,
        query="a cat",
        segment=None if segment is None else Segment(*segment),
        duration_s=duration_s,
    )


def test_the_best_constant_of_one_truth_is_that_truth():
    assert best_constant_segment([example((2.0, 6.0))]) == pytest.approx((0.2, 0.6), abs=1e-9)
    # Both segments are the same fraction of their clips.
    both = [example((2.0, 6.0), 10.0), example((5.0, 15.0), 25.0)]
    assert best_constant_segment(both) == pytest.approx((0.2, 0.6), abs=1e-9)


def test_best_constant_maximises_the_mean_iou():
    # [0, 0.5] has IoU 1, 1 and 0, mean 2/3. [0, 1] has IoU 1/2 with each truth.
    truths = [example((0.0, 5.0)), example((0.0, 5.0)), example((5.0, 10.0))]
    assert best_constant_segment(truths, step=0.5) == (0.0, 0.5)
    # [0, 0.5] and [0, 1] both have the mean (1 + 1/2) / 2; the first one wins the tie.
    assert best_constant_segment([example((0.0, 5.0)), example((0.0, 10.0))], step=0.5) == (0, 0.5)


def test_best_constant_may_be_the_entire_clip():
    truths = [example((0.0, 10.0)), example((0.0, 7.0)), example((3.0, 10.0))]
    assert best_constant_segment(truths) == pytest.approx((0.0, 1.0), abs=1e-9)


def test_random_segments_are_drawn_from_the_known_ones():
    known = [example((0.0, 5.0)), example((2.0, 4.0), 20.0), example(None), example((1, 2), None)]
    drawn = random_segments(known, 200, seed=0)
    assert set(drawn) == {Segment(0.0, 0.5), Segment(0.1, 0.2)}
    assert 70 < drawn.count(Segment(0.0, 0.5)) < 130
    assert random_segments(known, 200, seed=0) == drawn
    assert random_segments(known, 200, seed=1) != drawn


def test_blind_predictions_are_scored_by_iou():
    queries = [example((0.0, 5.0), qid="a"), example((4.0, 8.0), 8.0, qid="b"), example(None)]
    half = Segment(0.0, 0.5)
    first, second, third = blind_predictions(queries, [half, half, half])
    assert (first.qid, first.segment, first.score) == ("a", (0.0, 5.0), 1.0)
    assert (second.qid, second.segment, second.score) == ("b", (0.0, 4.0), 0.0)
    assert (third.truth, third.score) == (None, None)
    assert first.text == "0.00 to 5.00"
    assert first.is_parsed
    assert second.duration_s == 8.0


@pytest.mark.parametrize(
    "function", [best_constant_segment, lambda e: random_segments(e, 1, seed=0)]
)
def test_baselines_need_a_segment_and_a_duration(function):
    with pytest.raises(ValueError, match="needs examples with a segment and a duration"):
        function([example(None), example((1, 2), None)])


def test_blind_prediction_needs_the_duration_of_the_clip():
    with pytest.raises(ValueError, match=r"^q:1: a blind guess needs the clip's duration"):
        blind_predictions([example((1, 2), None, qid="q:1")], [Segment(0.0, 1.0)])
