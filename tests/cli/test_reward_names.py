"""What the command line says of rewards whose names cannot be logged."""

from __future__ import annotations


def test_a_reserved_reward_name_is_one_line(command):
    node = "{weight:1.0,reward:{_target_:tvg.reward.iou.IoUReward}}"
    error = command("train", f"+reward.total={node}").error
    assert error.startswith("reward.total: 'total' cannot name a reward: the logs use it")
    assert "\n" not in error


def test_an_impossible_reward_name_is_no_option(command):
    error = command("train", "reward=[iou,iou@0.5]").error
    assert error.startswith("reward: no option 'iou@0.5'; did you mean 'iou'")
