"""The shipped rewards against numbers worked out by hand."""

import pytest
from reward_parts import make_completions

from tvg.reward.base import Reward
from tvg.reward.format import FormatReward
from tvg.reward.iou import IoUReward
from tvg.reward.iou_v2 import IoUV2Reward
from tvg.reward.weighted import WeightedReward
from tvg.types import Segment


def score(reward: Reward, text: str, *, truth: Segment, duration_s: float = 20.0) -> float:
    output = WeightedReward(rewards={"it": reward}, weights={"it": 1.0})(
        make_completions([text], truth=truth, duration_s=duration_s)
    )
    return output.parts["it"].item()


def completion(answer: str) -> str:
    return f"<think>so</think> <answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("answer", "iou", "iou_v2"),
    [
        ("4.00 to 12.00", 1.0, 1.0),
        # 6 s of 10 s; both ends 2 s off of 20 s: 0.9 * 0.9.
        ("6.00 to 14.00", 0.6, 0.6 * 0.9 * 0.9),
        # 4 s of 8 s; the start is 4 s off.
        ("8.00 to 12.00", 0.5, 0.5 * 0.8),
        ("12.00 to 18.00", 0.0, 0.0),  # touching
        ("12.00 to 4.00", 0.0, 0.0),  # reversed
        ("5.00 to 5.00", 0.0, 0.0),  # empty
        ("nowhere", 0.0, 0.0),
        # 8 s of 32 s; the end misses by 24 s of 20 s: negative, as published.
        ("4.00 to 36.00", 0.25, 0.25 * (1 - 24 / 20)),
    ],
)
def test_overlap_rewards(answer: str, iou: float, iou_v2: float) -> None:
    truth = Segment(4.0, 12.0)
    assert score(IoUReward(), completion(answer), truth=truth) == pytest.approx(iou)
    assert score(IoUV2Reward(), completion(answer), truth=truth) == pytest.approx(iou_v2)


def test_a_reversed_truth_earns_nothing() -> None:
    assert score(IoUReward(), completion("4 to 12"), truth=Segment(12.0, 4.0)) == 0.0
    assert score(IoUV2Reward(), completion("4 to 12"), truth=Segment(12.0, 4.0)) == 0.0


@pytest.mark.parametrize("duration_s", [0.0, -1.0, float("nan")])
def test_a_clip_without_length_is_named(duration_s: float) -> None:
    with pytest.raises(ValueError, match="duration_s"):
        score(IoUV2Reward(), completion("1 to 2"), truth=Segment(1.0, 2.0), duration_s=duration_s)


def test_format_reward() -> None:
    truth = Segment(0.0, 1.0)
    answer_only = "<answer>junk</answer>"
    assert score(FormatReward(think=True), completion("junk"), truth=truth) == 1.0
    assert score(FormatReward(think=True), answer_only, truth=truth) == 0.0
    assert score(FormatReward(think=False), answer_only, truth=truth) == 1.0
    assert score(FormatReward(think=False), completion("junk"), truth=truth) == 0.0
    assert score(FormatReward(think=True), completion("1 to 2") + ".", truth=truth) == 0.0
