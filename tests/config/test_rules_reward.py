"""Tests of config rules about rewards: their arguments and their names."""

from __future__ import annotations

import sys

import pytest

from tvg.config import compose
from tvg.config.check import find_problems
from tvg.config.rules.learning import reward_cannot_be_called, reward_cannot_be_named
from tvg.reward.iou import IoUReward
from tvg.reward.weighted import WeightedReward

REWARDS = """
def plain(*, texts):
    return [0.0 for _ in texts]

def asks(*, texts, frames):
    return [0.0 for _ in texts]

def has_setting(*, texts, max_chars):
    return [0.0 for _ in texts]

def counts(*, num_tokens):
    return [0.0 for _ in num_tokens]

def makes_one(max_chars):
    return plain

class Own:
    def __init__(self, *, max_chars=3):
        pass

    def __call__(self, *, texts, **rest):
        return [0.0 for _ in texts]

class Asks:
    def __call__(self, *, texts, frames):
        return [0.0 for _ in texts]

class NotCallable:
    pass
"""


@pytest.fixture(autouse=True)
def rewards(tmp_path, monkeypatch):
    (tmp_path / "rewards_to_check.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("rewards_to_check", None)


def found(target: str, **settings):
    node = {"_target_": f"rewards_to_check.{target}", **settings}
    return reward_cannot_be_called({"reward": {"own": {"weight": 1.0, "reward": node}}})


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("plain", {"_partial_": True}),
        ("has_setting", {"_partial_": True, "max_chars": 3}),
        ("makes_one", {"max_chars": 3}),
        ("Own", {}),
        ("Own", {"max_chars": 4}),
        ("plain", {"_partial_": True, "max_chars": 3}),  # reported by the check of targets
        ("missing", {}),  # reported by the check of targets
    ],
)
def test_callable_reward_is_accepted(target, settings):
    assert found(target, **settings) == []


@pytest.mark.parametrize(
    ("target", "settings", "problem"),
    [
        ("plain", {}, "rewards_to_check.plain is a function: add _partial_: true to its node"),
        ("has_setting", {"max_chars": 3}, "add _partial_: true"),
        ("has_setting", {"_partial_": True}, "'own' needs the argument 'max_chars'"),
        ("asks", {"_partial_": True}, "'own' needs the argument 'frames'"),
        (
            "counts",
            {"_partial_": True, "num_tokens": 3},
            "'num_tokens' is an input of every reward",
        ),
        ("Asks", {}, "'own' needs the argument 'frames'"),
        ("NotCallable", {}, "'own' must be callable"),
    ],
)
def test_reward_that_cannot_be_called_is_refused(target, settings, problem):
    (line,) = found(target, **settings)
    assert line.startswith("reward.own.reward: ")
    assert problem in line


@pytest.mark.parametrize("cfg", [{}, {"reward": None}, {"reward": {"iou": None}}])
def test_config_without_rewards_is_accepted(cfg):
    assert reward_cannot_be_called(cfg) == []


def test_config_check_includes_the_reward_rule():
    node = "{weight:1.0,reward:{_target_:rewards_to_check.plain}}"
    problems = find_problems(compose("train", [f"+reward.own={node}"]))
    assert [p for p in problems if p.startswith("reward.own")] != []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("total", "the logs use it"),
        ("kl_penalty", "the logs use it"),
        ("iou_std", "the logs use it"),
        ("x_flat_groups", "the logs use it"),
        *(
            (name, "has to begin with a letter")
            for name in ("iou@0.5", "a/b", "a.b", "", "1", "-a")
        ),
        *((name, "begin with a letter") for name in ("a b", "_a", "ü", "a\n", "a:b", "a=1")),
    ],
)
def test_invalid_reward_name_is_refused(name: str, why: str) -> None:
    for names in ([name], ["iou", name]):
        (problem,) = reward_cannot_be_named({"reward": {key: {} for key in names}})
        assert problem.startswith(f"reward.{name}: {name!r} cannot name a reward: ")
        assert why in problem
    with pytest.raises(ValueError, match="cannot name a reward"):
        WeightedReward(rewards={name: IoUReward()}, weights={name: 1.0})


def test_valid_reward_names_are_accepted() -> None:
    names = ("iou", "iou_v2", "std", "Total", "a-b", "total_2", "keywords")
    assert reward_cannot_be_named({"reward": {key: {} for key in names}}) == []
    assert reward_cannot_be_named({}) == []


def test_config_check_refuses_reserved_reward_name() -> None:
    node = "{weight:1.0,reward:{_target_:tvg.reward.iou.IoUReward}}"
    problems = find_problems(compose("train", [f"+reward.total={node}"]))
    assert [problem.partition(":")[0] for problem in problems] == ["reward.total"]
