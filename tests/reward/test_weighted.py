"""The weighted sum, and what it says when a reward misbehaves."""

import math
from typing import Any

import pytest
import torch

from tvg.core.parsing import ParsedAnswer, parse_answer
from tvg.reward.format import FormatReward
from tvg.reward.iou import IoUReward
from tvg.reward.weighted import WeightedReward
from tvg.types import RewardOutput, Segment

TEXTS = [
    "<answer>0 to 10</answer>",
    "0 to 10",
    "<answer>5 to 15</answer>",
]


def score(reward: WeightedReward, texts: list[str] = TEXTS) -> RewardOutput:
    return reward(
        texts=texts,
        answers=[parse_answer(text) for text in texts],
        truths=[Segment(0.0, 10.0)] * len(texts),
        durations_s=[20.0] * len(texts),
    )


def lengths(*, texts: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in texts]


def test_total_and_raw_parts() -> None:
    reward = WeightedReward(
        rewards={"format": FormatReward(think=False), "iou": IoUReward(), "length": lengths},
        weights={"format": 0.5, "iou": 2.0, "length": 0.0},
    )
    output = score(reward)
    assert list(output.parts) == ["format", "iou", "length"]
    torch.testing.assert_close(output.parts["format"], torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(output.parts["iou"], torch.tensor([1.0, 0.0, 1 / 3]))
    # Weight 0: logged, not paid.
    torch.testing.assert_close(output.parts["length"], torch.tensor([24.0, 7.0, 24.0]))
    torch.testing.assert_close(output.total, torch.tensor([2.5, 0.0, 0.5 + 2 / 3]))
    assert output.total.dtype == torch.float32


def test_no_completions_no_rewards() -> None:
    output = score(WeightedReward(rewards={"iou": IoUReward()}, weights={"iou": 1.0}), [])
    assert output.total.shape == output.parts["iou"].shape == (0,)


def test_the_reward_and_the_completion_are_named_when_one_raises() -> None:
    def picky(*, texts: list[str], **_: Any) -> list[float]:
        return [1 / (0 if text == "0 to 10" else 1) for text in texts]

    reward = WeightedReward(
        rewards={"iou": IoUReward(), "picky": picky}, weights={"iou": 1.0, "picky": 1.0}
    )
    with pytest.raises(ValueError, match=r"'picky'.*completion 1: '0 to 10'.*division") as caught:
        score(reward)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_that_fails_on_the_batch_alone_is_named() -> None:
    def lonely(*, texts: list[str], **_: Any) -> list[float]:
        if len(texts) > 1:
            raise RuntimeError("too many")
        return [0.0]

    with pytest.raises(ValueError, match=r"'lonely'.*3 completions together.*too many"):
        score(WeightedReward(rewards={"lonely": lonely}, weights={"lonely": 1.0}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_reward_that_is_not_finite_is_named(value: float, weight: float) -> None:
    def broken(*, texts: list[str], **_: Any) -> list[float]:
        return [0.0] * (len(texts) - 1) + [value]

    with pytest.raises(ValueError, match=r"'broken'.*completion 2: '<answer>5 to 15</answer>'"):
        score(WeightedReward(rewards={"broken": broken}, weights={"broken": weight}))


@pytest.mark.parametrize("num_values", [0, 1, 4])
def test_a_wrong_number_of_values_is_named(num_values: int) -> None:
    def short(**_: Any) -> list[float]:
        return [0.0] * num_values

    with pytest.raises(ValueError, match=f"'short'.*{num_values} values for 3 completions"):
        score(WeightedReward(rewards={"short": short}, weights={"short": 1.0}))


def test_a_long_completion_is_shortened_in_the_message() -> None:
    def broken(**_: Any) -> list[float]:
        return [math.nan]

    reward = WeightedReward(rewards={"broken": broken}, weights={"broken": 1.0})
    with pytest.raises(ValueError, match="aaa") as caught:
        score(reward, ["a" * 5000])
    assert len(str(caught.value)) < 250


def test_lists_of_unequal_length_are_named() -> None:
    reward = WeightedReward(rewards={"iou": IoUReward()}, weights={"iou": 1.0})
    with pytest.raises(ValueError, match=r"\[1, 0, 1, 1\]"):
        reward(texts=["a"], answers=[], truths=[Segment(0.0, 1.0)], durations_s=[1.0])


@pytest.mark.parametrize(
    ("rewards", "weights", "named"),
    [
        ({}, {}, "at least one"),
        ({"iou": IoUReward()}, {}, "iou"),
        ({"iou": IoUReward()}, {"iuo": 1.0}, "iuo"),
        ({"iou": IoUReward()}, {"iou": 1.0, "format": 1.0}, "format"),
        ({"iou": IoUReward()}, {"iou": math.nan}, "weights.iou"),
    ],
)
def test_impossible_settings_are_named(
    rewards: dict[str, Any], weights: dict[str, float], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        WeightedReward(rewards=rewards, weights=weights)


def test_parsed_answers_arrive_as_they_were_given() -> None:
    seen: list[ParsedAnswer] = []

    def spy(*, answers: list[ParsedAnswer], **_: Any) -> list[float]:
        seen.extend(answers)
        return [0.0] * len(answers)

    score(WeightedReward(rewards={"spy": spy}, weights={"spy": 1.0}))
    assert [answer.segment for answer in seen] == [Segment(0, 10), None, Segment(5, 15)]
