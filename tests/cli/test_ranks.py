"""Tests that two ranks make the same optimizer steps as one process with both batches."""

import csv
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file


def on_world(run_dir, checkpoint, world):
    return [
        f"hydra.run.dir={run_dir}",
        f"model.path={checkpoint}",
        "data.world=null",
        f"data.train_file={world}/train.json",
        f"data.val_file={world}/val.json",
        f"data.test_file={world}/test.json",
        f"data.video_dir={world}/videos",
    ]


def train(run_dir, checkpoint, world, *more):
    overrides = [
        *on_world(run_dir, checkpoint, world),
        "objective=sft",
        "prompt=short",
        # Answers of different lengths, so that the ranks have different numbers of tokens.
        "prompt.answer_format='<answer>{start_s} to {end_s}</answer>'",
        "objective.optimizer.lr=1e-2",
        "objective.optimizer._target_=torch.optim.SGD",
        "~objective.optimizer.betas",
        "objective.schedule.name=constant",
        "objective.schedule.warmup_steps=0",
        "rollout.max_new_tokens=4",
        "trainer.accelerator=cpu",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "callbacks=[]",
        "logger=csv",
        *more,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tvg.cli.train", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (metrics,) = run_dir.rglob("metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    logged = {
        name: [float(row[name]) for row in rows if row.get(name)]
        for name in ("train/loss", "val/miou", "val/parse_rate")
    }
    return load_file(run_dir / "export" / "model.safetensors"), logged


# Rank 0 finds groups with unequal rewards sooner, so it must wait for rank 1.
UNEVEN = """
import os

def for_some(*, texts, examples):
    rare = os.environ.get("LOCAL_RANK", "0") == "1"
    chosen = [sum(map(ord, e.qid)) % 3 == 0 or not rare for e in examples]
    return [len(t) % 5 * is_chosen for t, is_chosen in zip(texts, chosen)]
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ranks_step_together_if_one_waits_for_groups(tiny_checkpoint, tiny_world, tmp_path):
    (tmp_path / "uneven.py").write_text(UNEVEN)
    run_dir = tmp_path / "run"
    overrides = [
        *on_world(run_dir, tiny_checkpoint, tiny_world),
        "data.batch_size=1",
        "prompt=short",
        "objective=dapo",
        "objective.group_size=3",
        "objective.num_updates=2",
        "objective.advantage.scale=batch_std",
        "objective.loss.kl_coef=0.1",
        "objective.loss.kl_in=reward",
        "objective.loss.mask_truncated=false",
        "objective.optimizer.lr=1e-3",
        "model/adapter=lora",
        "reward=[format]",
        "+reward.some.weight=1.0",
        "+reward.some.reward._target_=uneven.for_some",
        "+reward.some.reward._partial_=true",
        "rollout.max_new_tokens=8",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "strategy=ddp",
        "trainer.max_steps=6",
        "trainer.val_check_interval=100",
        "logger=csv",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tvg.cli.train", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (metrics,) = run_dir.rglob("metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row.get("train/loss")]
    batches = [row for row in rows if row.get("train/reward/total")]
    assert len(steps) == 3
    assert len(batches) > len(steps), "expected more batches than steps"
    assert (run_dir / "export" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_equal_one_process(tiny_checkpoint, tiny_world, tmp_path):
    one, logged = train(
        tmp_path / "one", tiny_checkpoint, tiny_world, "data.batch_size=4", "trainer.devices=1"
    )
    two, logged_too = train(
        tmp_path / "two",
        tiny_checkpoint,
        tiny_world,
        "data.batch_size=2",
        "objective.micro_batch_size=1",  # gradients are synchronised once per step
        "trainer.devices=2",
        "strategy=ddp",
    )
    before = load_file(tiny_checkpoint / "model.safetensors")
    assert any(not torch.equal(one[name], before[name]) for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=name)
    for name, values in logged.items():
        assert logged_too[name] == pytest.approx(values, rel=1e-4), name
