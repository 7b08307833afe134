"""The weighted sum of rewards; the raw value of each reward is kept for the logs."""

from __future__ import annotations

import math
from typing import Any

import torch

from tvg.core.reward_names import reward_name_problems
from tvg.reward.base import Completions, Reward
from tvg.reward.signature import wanted_fields
from tvg.types import RewardOutput

_EXCERPT_CHARS = 80
_MAX = torch.finfo(torch.float32).max


class WeightedReward:
    """Weighted sum of named rewards; a reward with weight 0 is only computed and logged.

    Args:
        rewards: name -> reward; the names become columns of the logs.
        weights: name -> weight, for exactly the same names.

    Raises:
        ValueError: there is no reward, the names differ or cannot be logged, a weight is not
            finite, or a reward requires an argument that does not exist.
    """

    def __init__(self, *, rewards: dict[str, Reward], weights: dict[str, float]) -> None:
        if not rewards:
            raise ValueError("reward.rewards must name at least one reward: got none")
        if rewards.keys() != weights.keys():
            raise ValueError(
                "reward.weights must name the same rewards as reward.rewards: "
                f"got weights for {sorted(weights)}, rewards {sorted(rewards)}"
            )
        if problems := reward_name_problems(rewards):
            raise ValueError("; ".join(problems))
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"reward.{name}.weight must be finite: got {weight}")
        self.rewards = dict(rewards)
        self.weights = dict(weights)
        self._wanted = {name: wanted_fields(name, reward) for name, reward in rewards.items()}

    def __call__(self, completions: Completions) -> RewardOutput:
        """Scores N completions.

        Returns:
            The weighted total [N] and the raw values [N] of each reward by name.

        Raises:
            ValueError: a reward raises, returns the wrong number of values, or returns a value that
                is not finite in float32; the message names the reward and the completion.
        """
        total = torch.zeros(len(completions), dtype=torch.float64)
        components = {}
        for name, reward in self.rewards.items():
            if "truths" in self._wanted[name]:
                _check_truths(name, completions)
            values = _score(name, reward, self._wanted[name], completions)
            part = torch.tensor(values, dtype=torch.float64)
            total += self.weights[name] * part
            components[name] = part.float()
        for index, value in enumerate(total.tolist()):
            if not abs(value) <= _MAX:
                raise ValueError(
                    f"reward: the weighted total must be finite: got {value} for "
                    f"{_completion(completions, index)}; see the weights {self.weights}"
                )
        return RewardOutput(total=total.float(), components=components)


def _check_truths(name: str, completions: Completions) -> None:
    for example, truth in zip(completions.examples, completions.truths, strict=True):
        if truth is None:
            raise ValueError(f"reward {name!r}: {example.qid} has no true segment to compare with")


def _score(
    name: str, reward: Reward, wanted: frozenset[str], completions: Completions
) -> list[float]:
    try:
        found = reward(**completions.given(wanted))
    except Exception as error:  # a user's reward may raise any error
        raise _failure(name, reward, wanted, completions, error) from error
    if hasattr(found, "tolist"):  # a tensor, or an array
        found = found.tolist()
    if not isinstance(found, list | tuple):
        raise ValueError(
            f"reward {name!r} must return a list or a tensor of numbers, one per completion: "
            f"got {_excerpt(found)} ({type(found).__name__})"
        )
    if len(found) != len(completions):
        raise ValueError(
            f"reward {name!r} must return one value per completion: "
            f"got {len(found)} values for {len(completions)} completions"
        )
    return [_number(name, value, completions, index) for index, value in enumerate(found)]


def _number(name: str, value: Any, completions: Completions, index: int) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # None, lists, several elements
        number = math.nan
    if not abs(number) <= _MAX:
        raise ValueError(
            f"reward {name!r} must be a finite number: "
            f"got {_excerpt(value)} for {_completion(completions, index)}"
        )
    return number


def _failure(
    name: str,
    reward: Reward,
    wanted: frozenset[str],
    completions: Completions,
    error: Exception,
) -> ValueError:
    """Returns an error that names the completion (or else the group) on which the reward raises."""

    def error_on(start: int, stop: int, group_size: int) -> Exception | None:
        try:
            reward(**completions.rows(start, stop, group_size=group_size).given(wanted))
        except Exception as alone:
            return alone
        return None

    size = completions.group_size
    for first in range(0, len(completions), size):
        in_group = error_on(first, first + size, size)
        if in_group is None:
            continue
        for index in range(first, first + size):
            alone = error_on(index, index + 1, 1)
            # A reward that compares the completions of a group may fail on a single completion
            # because the rest of the group is missing. Such a failure is ignored.
            if alone is not None and ("group_size" not in wanted or repr(alone) == repr(in_group)):
                return _failed(name, f"on {_completion(completions, index)}", alone)
        where = f"on the group of completions {first} to {first + size - 1}"
        return _failed(name, f"{where}: {_excerpt(completions.texts[first])}, ...", in_group)
    where = f"on {len(completions)} completions together, but on none of their groups alone"
    return _failed(name, where, error)


def _failed(name: str, where: str, error: Exception) -> ValueError:
    return ValueError(f"reward {name!r} failed {where}: {type(error).__name__}: {error}")


def _completion(completions: Completions, index: int) -> str:
    qid = completions.examples[index].qid
    return f"completion {index} ({qid}): {_excerpt(completions.texts[index])}"


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + "..."
