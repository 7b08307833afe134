"""Tests that a killed and resumed run equals an uninterrupted run bit for bit."""

import csv
import os

import pytest
import torch
from helpers.killed_runs import assert_same, finish, kill_when_there, start_training

STEPS = 6
# A reward with weight 0 that blocks in the middle of a step, at call number BLOCK_AT.
BLOCKING = """
import os, time
from pathlib import Path

class Blocking:
    calls = 0

    def __call__(self, *, texts, **rest):
        self.calls += 1
        if os.environ.get("BLOCK_AT") == str(self.calls):
            Path(os.environ["BLOCK_FILE"]).touch()
            time.sleep(600)
        return [0.0] * len(texts)


def for_some(*, texts, examples):
    # Differs within the groups of every other query.
    return [len(t) % 5 * (sum(map(ord, e.qid)) % 2) for t, e in zip(texts, examples)]
"""
GRPO = ("objective.loss.kl_coef=0.1",)
DAPO = (
    "objective=dapo",
    "objective.num_updates=2",
    "objective.loss.kl_coef=0.1",
    "objective.loss.kl_in=reward",
    "model/adapter=lora",
    "+reward.some.weight=1.0",
    "+reward.some.reward._target_=blocking.for_some",
    "+reward.some.reward._partial_=true",
)


def start(run_dir, checkpoint, world, *more, **environment):
    overrides = [
        f"model.path={checkpoint}",
        "data.world=null",
        f"data.train_file={world}/train.json",
        f"data.val_file={world}/val.json",
        f"data.test_file={world}/test.json",
        f"data.video_dir={world}/videos",
        "data.batch_size=2",
        "prompt=short",
        "reward=[format,iou]",
        "objective.group_size=3",
        "objective.optimizer.lr=1e-3",
        "objective.schedule.warmup_steps=2",
        "+reward.blocking.weight=0.0",
        "+reward.blocking.reward._target_=blocking.Blocking",
        "rollout.max_new_tokens=8",
        f"trainer.max_steps={STEPS}",
        "trainer.val_check_interval=4",
        "callbacks.checkpoint.every_n_train_steps=1",
        "callbacks.progress.every_n_steps=1",
        "callbacks.progress.style=lines",
        "logger=csv",
        *more,
    ]
    return start_training(run_dir, overrides, **environment)


def logged(run_dir):
    """Returns (step, metric) -> logged text; later entries replace earlier ones."""
    found = {}
    for path in sorted(run_dir.rglob("metrics.csv"), key=os.path.getmtime):
        with path.open() as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch") and not name.startswith("perf/"):
                        found[row["step"], name] = value
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("objective", [GRPO, DAPO])
def test_killed_and_resumed_run_equals_uninterrupted_run(
    tiny_checkpoint, tiny_world, tmp_path, objective
):
    (tmp_path / "blocking.py").write_text(BLOCKING)
    marker = tmp_path / "in_the_fourth_step"
    finish(start(tmp_path / "whole", tiny_checkpoint, tiny_world, *objective))
    block = {"BLOCK_AT": "4", "BLOCK_FILE": str(marker)}
    killed = (tmp_path / "killed", tiny_checkpoint, tiny_world, *objective)
    kill_when_there(start(*killed, **block), marker)
    finish(start(*killed, "resume=true"))
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "killed")
    )
    assert one["global_step"] == other["global_step"] == STEPS
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    assert_same(one["optimizer_states"], other["optimizer_states"])
    assert_same(one["lr_schedulers"], other["lr_schedulers"])
    metrics = logged(tmp_path / "whole")
    assert {"train/reward/total", "train/policy/kl", "val/miou"} <= {name for _, name in metrics}
    num_updates = 2 if objective is DAPO else 1
    steps, losses = (
        {step for step, logged_name in metrics if logged_name == name}
        for name in ("train/reward/total", "train/loss")
    )
    assert len(losses) == STEPS / num_updates
    assert len(steps) > len(losses) or objective is GRPO, "expected batches without a step"
    assert logged(tmp_path / "killed") == metrics
