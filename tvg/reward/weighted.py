"""The weighted sum of rewards, with every raw part kept for the logs."""

from __future__ import annotations

import math

import torch

from tvg.core.parsing import ParsedAnswer
from tvg.reward.base import Reward
from tvg.types import RewardOutput, Segment

_EXCERPT_CHARS = 80


class WeightedReward:
    """Weighted sum of named rewards; a weight of 0 computes and logs a reward without paying it.

    Args:
        rewards: name -> reward; the names become columns of the logs.
        weights: name -> weight, for exactly the same names.

    Raises:
        ValueError: if there is no reward, the names differ or a weight is not finite.
    """

    def __init__(self, *, rewards: dict[str, Reward], weights: dict[str, float]) -> None:
        if not rewards:
            raise ValueError("reward.rewards must name at least one reward: got none")
        if rewards.keys() != weights.keys():
            raise ValueError(
                "reward.weights must name the same rewards as reward.rewards: "
                f"got weights for {sorted(weights)}, rewards {sorted(rewards)}"
            )
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"reward.weights.{name} must be finite: got {weight}")
        self.rewards = dict(rewards)
        self.weights = dict(weights)

    def __call__(
        self,
        *,
        texts: list[str],
        answers: list[ParsedAnswer],
        truths: list[Segment],
        durations_s: list[float],
    ) -> RewardOutput:
        """Score N completions.

        Args:
            texts: N completions, special tokens removed.
            answers: what was parsed from each.
            truths: the true segment of each one's query, in seconds.
            durations_s: length of each one's clip.

        Returns:
            Weighted total [N] and the raw parts [N] by name.

        Raises:
            ValueError: naming the reward and the completion, if a reward raises, returns a wrong
                number of values, or one that is not finite.
        """
        lengths = [len(texts), len(answers), len(truths), len(durations_s)]
        if len(set(lengths)) != 1:
            raise ValueError(
                "texts, answers, truths and durations_s must have one entry per completion: "
                f"got lengths {lengths}"
            )
        total = torch.zeros(len(texts), dtype=torch.float64)
        parts = {}
        for name, reward in self.rewards.items():
            values = _score(name, reward, texts, answers, truths, durations_s)
            part = torch.tensor(values, dtype=torch.float64)
            total += self.weights[name] * part
            parts[name] = part.float()
        return RewardOutput(total=total.float(), parts=parts)


def _score(
    name: str,
    reward: Reward,
    texts: list[str],
    answers: list[ParsedAnswer],
    truths: list[Segment],
    durations_s: list[float],
) -> list[float]:
    def call(rows: slice) -> list[float]:
        values = reward(
            texts=texts[rows],
            answers=answers[rows],
            truths=truths[rows],
            durations_s=durations_s[rows],
        )
        return [float(value) for value in values]

    try:
        values = call(slice(None))
    except Exception as error:  # a user's reward may raise anything: say which one, on what
        for index in range(len(texts)):
            try:
                call(slice(index, index + 1))
            except Exception as alone:
                raise _failure(name, index, texts, alone) from alone
        raise ValueError(
            f"reward {name!r} failed on {len(texts)} completions together, on none of them alone: "
            f"{type(error).__name__}: {error}"
        ) from error
    if len(values) != len(texts):
        raise ValueError(
            f"reward {name!r} must return one value per completion: "
            f"got {len(values)} values for {len(texts)} completions"
        )
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(
                f"reward {name!r} must be finite: "
                f"got {value} for completion {index}: {_excerpt(texts[index])}"
            )
    return values


def _failure(name: str, index: int, texts: list[str], error: Exception) -> ValueError:
    return ValueError(
        f"reward {name!r} failed on completion {index}: {_excerpt(texts[index])}: "
        f"{type(error).__name__}: {error}"
    )


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + "...")
