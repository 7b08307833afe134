"""Tests of the shipped rewards against hand-computed numbers."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import pytest
from helpers.reward_inputs import make_completions

from tvg.reward.base import Reward
from tvg.reward.boundary import BoundaryReward
from tvg.reward.choice import ChoiceReward
from tvg.reward.diversity import DiversityReward
from tvg.reward.format import ExactFormatReward, FormatReward
from tvg.reward.giou import GIoUReward
from tvg.reward.iou import IoUReward
from tvg.reward.iou_v2 import IoUV2Reward
from tvg.reward.overlong import OverlongReward
from tvg.reward.thought import keyword_use, paragraphs, think_length, timesteps
from tvg.reward.weighted import WeightedReward
from tvg.types import Segment


def scores(reward: Reward, texts: list[str], **changes: Any) -> list[float]:
    weighted = WeightedReward(rewards={"it": reward}, weights={"it": 1.0})
    return weighted(make_completions(texts, **changes)).components["it"].tolist()


def score(reward: Reward, text: str, **changes: Any) -> float:
    (value,) = scores(reward, [text], **changes)
    return value


def completion(answer: str, thought: str = "so") -> str:
    return f"<think>{thought}</think> <answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("answer", "iou", "iou_v2"),
    [
        ("4.00 to 12.00", 1.0, 1.0),
        # Intersection 6 s, union 10 s. Both ends miss by 2 s in 20 s: 0.9 * 0.9.
        ("6.00 to 14.00", 0.6, 0.6 * 0.9 * 0.9),
        # Intersection 4 s, union 8 s. The start misses by 4 s.
        ("8.00 to 12.00", 0.5, 0.5 * 0.8),
        ("12.00 to 18.00", 0.0, 0.0),  # touching
        ("12.00 to 4.00", 0.0, 0.0),  # reversed
        ("5.00 to 5.00", 0.0, 0.0),  # empty
        ("nowhere", 0.0, 0.0),
        # Intersection 8 s, union 32 s. The end misses by 24 s in 20 s: negative, as published.
        ("4.00 to 36.00", 0.25, 0.25 * (1 - 24 / 20)),
    ],
)
def test_iou_rewards_equal_hand_computed_numbers(answer: str, iou: float, iou_v2: float) -> None:
    truth = Segment(4.0, 12.0)
    assert score(IoUReward(), completion(answer), truth=truth) == pytest.approx(iou)
    assert score(IoUV2Reward(), completion(answer), truth=truth) == pytest.approx(iou_v2)


def test_iou_v2_can_use_the_stated_duration() -> None:
    """Truth 4 to 12 s, answer 8 to 12 s: IoU 0.5, start 4 s off. The file is 40 s long."""
    asked = {"truth": Segment(4.0, 12.0), "duration_s": 40.0}
    answer = completion("8.00 to 12.00")
    assert score(IoUV2Reward(), answer, **asked) == pytest.approx(0.5 * (1 - 4 / 40))
    stated = IoUV2Reward(duration="annotation")
    examples = [replace(make_completions([answer], **asked).examples[0], duration_s=20.0)]
    assert score(stated, answer, **asked, examples=examples) == pytest.approx(0.5 * (1 - 4 / 20))
    unstated = [replace(examples[0], duration_s=None)]
    assert score(stated, answer, **asked, examples=unstated) == pytest.approx(0.5 * (1 - 4 / 40))
    with pytest.raises(ValueError, match=r"^reward.iou_v2.reward.duration: expected clip or ann"):
        IoUV2Reward(duration="file")  # type: ignore[arg-type]


def test_reversed_truth_gives_zero_iou_rewards() -> None:
    assert score(IoUReward(), completion("4 to 12"), truth=Segment(12.0, 4.0)) == 0.0
    assert score(IoUV2Reward(), completion("4 to 12"), truth=Segment(12.0, 4.0)) == 0.0


@pytest.mark.parametrize("duration_s", [0.0, -1.0, float("nan")])
def test_clip_without_a_positive_duration_is_refused(duration_s: float) -> None:
    with pytest.raises(ValueError, match="duration_s"):
        score(IoUV2Reward(), completion("1 to 2"), truth=Segment(1.0, 2.0), duration_s=duration_s)


def test_format_reward_checks_the_tags() -> None:
    truth = Segment(0.0, 1.0)
    answer_only = "<answer>junk</answer>"
    assert score(FormatReward(think=True), completion("junk"), truth=truth) == 1.0
    assert score(FormatReward(think=True), answer_only, truth=truth) == 0.0
    assert score(FormatReward(think=False), answer_only, truth=truth) == 1.0
    assert score(FormatReward(think=False), completion("junk"), truth=truth) == 0.0
    assert score(FormatReward(think=True), completion("1 to 2") + ".", truth=truth) == 0.0


def test_format_exact_checks_the_answer() -> None:
    texts = [completion(answer) for answer in ("1.00 to 2.00", "1.00 to 2 2", "1 to 2", "junk")]
    assert scores(ExactFormatReward(), texts) == [1.0, 0.0, 0.0, 0.0]
    assert scores(FormatReward(think=True), texts) == [1.0] * 4  # as in Time-R1: only the tags


# Truth 4 to 12: 8 s long.
@pytest.mark.parametrize(
    ("answer", "giou", "distance"),
    [
        ("4.00 to 12.00", 1.0, 0.0),
        ("6.00 to 14.00", 0.6, 2.0),
        ("8.00 to 12.00", 0.5, 2.0),  # (4 + 0) / 2
        ("12.00 to 18.00", 0.0, 7.0),  # touching; (8 + 6) / 2
        ("14.00 to 24.00", -2 / 20, 11.0),  # a gap of 2 s in a hull of 20 s
        ("0.00 to 2.00", -2 / 12, 7.0),
        ("12.00 to 4.00", -1.0, math.inf),  # reversed
        ("5.00 to 5.00", -1.0, math.inf),  # empty
        ("nowhere", -1.0, math.inf),
    ],
)
def test_giou_and_boundary_equal_hand_computed_numbers(
    answer: str, giou: float, distance: float
) -> None:
    truth = Segment(4.0, 12.0)
    assert score(GIoUReward(), completion(answer), truth=truth) == pytest.approx(giou)
    for sharpness in (1.0, 3.0):
        value = score(BoundaryReward(sharpness=sharpness), completion(answer), truth=truth)
        assert value == pytest.approx(math.exp(-sharpness * distance / 8))


def test_dense_rewards_distinguish_misses_that_iou_does_not() -> None:
    texts = [completion(f"{s} to {s + 8}") for s in (12, 14, 20, 40, 400)]
    assert scores(IoUReward(), texts, truth=Segment(4.0, 12.0)) == [0.0] * 5
    for reward in (GIoUReward(), BoundaryReward(sharpness=1.0)):
        values = scores(reward, texts, truth=Segment(4.0, 12.0))
        assert values == sorted(set(values), reverse=True)
        assert len(values) == 5


def test_reversed_truth_gives_all_answers_the_lowest_reward() -> None:
    texts = [completion("4 to 12"), completion("5 to 6"), "nothing"]
    assert scores(GIoUReward(), texts, truth=Segment(12.0, 4.0)) == [-1.0] * 3
    assert scores(BoundaryReward(sharpness=1.0), texts, truth=Segment(12.0, 4.0)) == [0.0] * 3


@pytest.mark.parametrize("sharpness", [0.0, -1.0, math.inf, math.nan])
def test_boundary_sharpness_must_be_positive_and_finite(sharpness: float) -> None:
    with pytest.raises(ValueError, match=r"reward\.boundary\.reward\.sharpness.*above 0"):
        BoundaryReward(sharpness=sharpness)


def test_choice_reward_compares_option_letters() -> None:
    texts = [completion(answer) for answer in ("(B)", "B.", "(A)", "A man", "Option b")]
    for truth in ("B", "(B)", "B. opens the door"):
        values = scores(ChoiceReward(field="answer"), texts, extra={"answer": truth})
        assert values == [1.0, 1.0, 0.0, 0.0, 1.0]
    values = scores(ChoiceReward(field="option"), texts, extra={"option": "A"})
    assert values == [0.0, 0.0, 1.0, 0.0, 0.0]  # "A man" names no option


@pytest.mark.parametrize("extra", [{}, {"answer": "a door"}, {"answer": 2.0}])
def test_question_without_a_correct_option_is_refused(extra: dict[str, str | float]) -> None:
    with pytest.raises(ValueError, match=r"reward\.choice\.reward\.field: a:0 must have"):
        score(ChoiceReward(field="answer"), completion("(B)"), extra=extra)


def test_overlong_reward_equals_dapo_equation_13() -> None:
    # DAPO's equation 13 with L_max = 100, L_cache = 20.
    num_tokens = [0, 50, 80, 85, 90, 100, 120]
    values = scores(
        OverlongReward(max_tokens=100, cache_tokens=20), ["a"] * 7, num_tokens=num_tokens
    )
    assert values == [0.0, 0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert not any(math.copysign(1, value) < 0 for value in values[:3])  # no -0.0 in the logs
    for cache_tokens in (0, -1, 101):
        with pytest.raises(ValueError, match=r"overlong\.reward\.cache_tokens.*100"):
            OverlongReward(max_tokens=100, cache_tokens=cache_tokens)


def test_thought_rewards_equal_hand_computed_numbers() -> None:
    thought = (
        "First he sits.\n  \nThen <timestep> 2.10 to 4.00 </timestep>, because\n"
        "<timestep>5 to 6</timestep> it is AFTER that; <timestep>x</timestep>"
    )
    text, none = completion("1 to 2", thought), "<answer>1 to 2 first then</answer>"
    length = functools.partial(think_length, per_char=0.001, max_chars=500)
    assert scores(length, [text, none]) == pytest.approx([0.001 * len(thought), 0.0])
    assert score(length, completion("", "a" * 9999)) == pytest.approx(0.5)
    used = {"keywords": ["first", "then", "because", "after", "hen"], "per_keyword": 0.1}
    assert scores(functools.partial(keyword_use, max_keywords=2, **used), [text, none]) == (
        pytest.approx([0.2, 0.0])
    )
    assert score(functools.partial(keyword_use, max_keywords=9, **used), text) == pytest.approx(0.5)
    for max_pairs, value in ((1, 0.2), (2, 0.4), (9, 0.4)):
        pairs = functools.partial(timesteps, per_pair=0.2, max_pairs=max_pairs)
        assert scores(pairs, [text, none]) == pytest.approx([value, 0.0])
    for max_lines, value in ((2, 0.1), (9, 0.15)):
        lines = functools.partial(paragraphs, per_line=0.05, max_lines=max_lines)
        assert scores(lines, [text, none]) == pytest.approx([value, 0.0])


def test_diversity_is_the_mean_distance_within_the_group() -> None:
    texts = ["a b c d", "A, b; c d!", "a b x y", "p q r s"]
    # Distances: 0-1: 0; 0-2, 1-2: 1 - 2 * 2 / 8; all to 3: 1.
    assert scores(DiversityReward(max_words=9), texts) == pytest.approx(
        [(0 + 0.5 + 1) / 3, (0 + 0.5 + 1) / 3, (0.5 + 0.5 + 1) / 3, 1.0]
    )
    # Groups are independent, and only the first `max_words` words count.
    assert scores(DiversityReward(max_words=9), texts, group_size=2) == [0, 0, 1, 1]
    assert scores(DiversityReward(max_words=2), texts) == pytest.approx([1 / 3] * 3 + [1])
    assert scores(DiversityReward(max_words=9), ["", "", "a"]) == [0.5, 0.5, 1.0]
    assert scores(DiversityReward(max_words=9), ["a", "b"], group_size=1) == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"reward\.diversity\.reward\.max_words"):
        DiversityReward(max_words=0)


def test_times_of_300_digits_give_a_finite_reward() -> None:
    truth = Segment(0.0, 0.4)
    for num_digits in (100, 308, 309):
        text = completion("0 to " + "1" * num_digits)
        # IoU * (1 - miss / T) approaches -0.4 / T.
        value = score(IoUV2Reward(), text, truth=truth, duration_s=0.5)
        assert value == pytest.approx(-0.4 / 0.5)
        assert score(GIoUReward(), text, truth=truth) == pytest.approx(0.0)
        assert score(BoundaryReward(sharpness=1.0), text, truth=truth) == 0.0
