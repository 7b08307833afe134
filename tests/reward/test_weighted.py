"""Tests of the weighted sum of rewards, their inputs, and the errors about invalid rewards."""

import functools
import math
from typing import Any

import pytest
import torch
from helpers.reward_inputs import make_completions

from tvg.core.parsing import ParsedAnswer
from tvg.reward.base import FIELDS
from tvg.reward.format import FormatReward
from tvg.reward.iou import IoUReward
from tvg.reward.weighted import WeightedReward
from tvg.types import RewardOutput, Segment

TEXTS = [
    "<answer>0 to 10</answer>",
    "0 to 10",
    "<answer>5 to 15</answer>",
]


def score(reward: WeightedReward, texts: list[str] = TEXTS, **changes: Any) -> RewardOutput:
    return reward(make_completions(texts, **changes))


def only(reward: Any, name: str = "mine") -> WeightedReward:
    return WeightedReward(rewards={name: reward}, weights={name: 1.0})


def lengths(*, texts: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in texts]


def test_total_is_the_weighted_sum_of_raw_rewards() -> None:
    reward = WeightedReward(
        rewards={"format": FormatReward(think=False), "iou": IoUReward(), "length": lengths},
        weights={"format": 0.5, "iou": 2.0, "length": 0.0},
    )
    output = score(reward)
    assert list(output.components) == ["format", "iou", "length"]
    torch.testing.assert_close(output.components["format"], torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(output.components["iou"], torch.tensor([1.0, 0.0, 1 / 3]))
    # Weight 0: logged, but not in the total.
    torch.testing.assert_close(output.components["length"], torch.tensor([24.0, 7.0, 24.0]))
    torch.testing.assert_close(output.total, torch.tensor([2.5, 0.0, 0.5 + 2 / 3]))
    assert output.total.dtype == torch.float32


def test_no_completions_give_no_rewards() -> None:
    output = score(only(IoUReward(), "iou"), [])
    assert output.total.shape == output.components["iou"].shape == (0,)


# -- inputs of a reward ---------------------------------------------------------------------------


def test_a_reward_gets_the_inputs_it_names() -> None:
    seen: dict[str, Any] = {}

    def names_some(*, num_tokens, group_size, seen_by=1.0):
        seen["some"] = {"num_tokens": num_tokens, "group_size": group_size, "seen_by": seen_by}
        return [0.0] * len(num_tokens)

    def by_position_too(texts, is_finished):
        seen["positional"] = (texts, is_finished)
        return [0.0] * len(texts)

    def all_of_it(**given):
        seen["all"] = given
        return [0.0] * len(given["texts"])

    def one_and_the_rest(*, texts, **rest):
        seen["rest"] = rest
        return [0.0] * len(texts)

    rewards = {f.__name__: f for f in (names_some, by_position_too, all_of_it, one_and_the_rest)}
    completions = make_completions(TEXTS)
    WeightedReward(rewards=rewards, weights=dict.fromkeys(rewards, 1.0))(completions)
    assert seen["some"] == {"num_tokens": [3, 3, 3], "group_size": 3, "seen_by": 1.0}
    assert seen["positional"] == (TEXTS, [True] * 3)
    assert seen["all"] == {name: getattr(completions, name) for name in FIELDS}
    assert seen["rest"].keys() == FIELDS - {"texts"}


def test_settings_of_a_function_are_bound_by_partial() -> None:
    def short(*, texts: list[str], max_chars: int) -> list[float]:
        return [float(len(text) <= max_chars) for text in texts]

    output = score(only(functools.partial(short, max_chars=10)))
    assert output.total.tolist() == [0.0, 1.0, 0.0]


def test_unknown_arguments_are_refused_at_construction() -> None:
    def asks(*, texts: list[str], frames: list[Any]) -> list[float]:
        raise AssertionError("never called")

    with pytest.raises(ValueError, match=r"'mine' needs the argument 'frames'.*durations_s, exam"):
        only(asks)
    with pytest.raises(ValueError, match=r"'mine' needs the argument 'texts' by position"):
        only(lambda texts, /: [0.0])
    with pytest.raises(ValueError, match=r"'mine' must be callable: got int"):
        only(3)
    with pytest.raises(ValueError, match=r"'num_tokens' is an input of every reward"):
        only(functools.partial(lengths, num_tokens=200))


def test_a_reward_may_modify_its_lists_safely() -> None:
    def greedy(*, texts: list[str], truths: list[Segment]) -> list[float]:
        texts.clear()
        truths.reverse()
        return [0.0] * 3

    rewards = {"greedy": greedy, "length": lengths}
    output = score(WeightedReward(rewards=rewards, weights=dict.fromkeys(rewards, 1.0)))
    assert output.components["length"].tolist() == [24.0, 7.0, 24.0]


def test_rewards_get_the_parsed_answers_unchanged() -> None:
    seen: list[ParsedAnswer] = []

    def spy(*, answers: list[ParsedAnswer], **_: Any) -> list[float]:
        seen.extend(answers)
        return [0.0] * len(answers)

    score(only(spy))
    assert [answer.segment for answer in seen] == [Segment(0, 10), None, Segment(5, 15)]


# -- return values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.5, True],
        (1.0, 0.5, 1),
        torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True),
        [torch.tensor(1.0), torch.tensor([0.5]), 1],
    ],
)
def test_rewards_may_return_numbers_of_many_types(values: Any) -> None:
    assert score(only(lambda texts: values)).total.tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e300, 10**400, None, "1.0", [1.0], 1j, {}]
)
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_non_finite_reward_values_are_refused(value: Any, weight: float) -> None:
    def broken(*, texts: list[str]) -> list[Any]:
        return [0.0] * (len(texts) - 1) + [value]

    reward = WeightedReward(rewards={"broken": broken}, weights={"broken": weight})
    with pytest.raises(ValueError, match=r"'broken'.*completion 2 \(a:0\): '<answer>5 to 15</an"):
        score(reward)


@pytest.mark.parametrize(
    "values", [None, 1.0, "000", {"a": 1, "b": 2, "c": 3}, {1, 2, 3}, torch.tensor(1.0)]
)
def test_reward_that_returns_no_list_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"'mine' must return a list or a tensor of numbers"):
        score(only(lambda texts: values))


@pytest.mark.parametrize("num_values", [0, 1, 4])
def test_wrong_number_of_values_is_refused(num_values: int) -> None:
    with pytest.raises(ValueError, match=f"'short'.*{num_values} values for 3 completions"):
        score(only(lambda **_: [0.0] * num_values, "short"))


def test_total_that_overflows_is_refused() -> None:
    reward = WeightedReward(rewards={"big": lambda texts: [0, 3e38, 0]}, weights={"big": 2.0})
    with pytest.raises(ValueError, match=r"weighted total.*6e\+38 for completion 1.*'big': 2"):
        score(reward)


# -- rewards that raise ---------------------------------------------------------------------------


def test_error_names_the_reward_and_the_completion() -> None:
    def picky(*, texts: list[str], **_: Any) -> list[float]:
        return [1 / (0 if text == "0 to 10" else 1) for text in texts]

    def picky_by_name(*, texts: list[str]) -> list[float]:
        return picky(texts=texts)

    for reward in (picky, picky_by_name, functools.partial(picky_by_name)):
        rewards = {"iou": IoUReward(), "picky": reward}
        weighted = WeightedReward(rewards=rewards, weights=dict.fromkeys(rewards, 1.0))
        message = r"'picky' failed on completion 1 \(a:0\): '0 to 10': ZeroDivisionError: division"
        with pytest.raises(ValueError, match=message) as caught:
            score(weighted)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_group_reward_is_retried_group_by_group() -> None:
    def compares(*, texts: list[str], group_size: int) -> list[float]:
        if group_size < 2 or len(texts) % group_size:
            raise RuntimeError("expected complete groups")  # the search must not trigger this
        return [1 / (0 if text == "bad" else 1) for text in texts]

    texts = ["a", "b", "c", "bad", "e", "f"]
    message = r"'mine' failed on the group of completions 2 to 3: 'c', \.\.\.: ZeroDivisionError"
    with pytest.raises(ValueError, match=message):
        score(only(compares), texts, group_size=2)


def test_error_names_a_reward_that_fails_only_on_batches() -> None:
    def lonely(*, texts: list[str]) -> list[float]:
        if len(texts) > 1:
            raise RuntimeError("too many")
        return [0.0]

    with pytest.raises(ValueError, match=r"'lonely'.*3 completions together.*too many"):
        score(only(lonely, "lonely"), group_size=1)
    with pytest.raises(ValueError, match=r"'lonely'.*group of completions 0 to 2: .*too many"):
        score(only(lonely, "lonely"))


def test_a_long_completion_is_shortened_in_the_message() -> None:
    with pytest.raises(ValueError, match="aaa") as caught:
        score(only(lambda texts: [math.nan]), ["a" * 5000])
    assert len(str(caught.value)) < 250


# -- settings -------------------------------------------------------------------------------------


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'answers': 0"):
        make_completions(["a"], answers=[])
    with pytest.raises(ValueError, match=r"3 completions, group_size=2"):
        make_completions(TEXTS, group_size=2)


@pytest.mark.parametrize(
    ("rewards", "weights", "named"),
    [
        ({}, {}, "at least one"),
        ({"iou": IoUReward()}, {}, "iou"),
        ({"iou": IoUReward()}, {"iuo": 1.0}, "iuo"),
        ({"iou": IoUReward()}, {"iou": 1.0, "format": 1.0}, "format"),
        ({"iou": IoUReward()}, {"iou": math.nan}, r"reward\.iou\.weight"),
    ],
)
def test_invalid_settings_are_refused(
    rewards: dict[str, Any], weights: dict[str, float], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        WeightedReward(rewards=rewards, weights=weights)


def test_reward_that_reads_truths_needs_true_segments():
    def letters(*, texts):
        return [1.0 for _ in texts]

    def overlap(*, truths):
        return [0.0 for _ in truths]

    unknown = make_completions(["a", "b"], truth=None)
    plain = WeightedReward(rewards={"it": letters}, weights={"it": 1.0})
    assert plain(unknown).total.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"^reward 'it': a:0 has no true segment"):
        WeightedReward(rewards={"it": overlap}, weights={"it": 1.0})(unknown)
