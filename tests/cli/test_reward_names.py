"""Tests of error messages for rewards whose names cannot be logged."""

from __future__ import annotations


def test_reserved_reward_name_is_refused_in_one_line(command):
    node = "{weight:1.0,reward:{_target_:tvg.reward.iou.IoUReward}}"
    error = command("train", f"+reward.total={node}").error
    assert error.startswith("reward.total: 'total' cannot name a reward: the logs use it")
    assert "\n" not in error


def test_invalid_reward_name_suggests_an_option(command):
    error = command("train", "reward=[iou,iou@0.5]").error
    assert error.startswith("reward: no option 'iou@0.5'; did you mean 'iou'")
