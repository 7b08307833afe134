"""Two processes take the same step as one with both their batches."""

import csv
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file


def train(run_dir, checkpoint, world, *more):
    overrides = [
        f"hydra.run.dir={run_dir}",
        f"model.path={checkpoint}",
        "objective=sft",
        "data.world=null",
        f"data.train_file={world}/train.json",
        f"data.val_file={world}/val.json",
        f"data.test_file={world}/test.json",
        f"data.video_dir={world}/videos",
        "prompt=short",
        # Answers of different lengths: one rank has more tokens than the other.
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
        [sys.executable, "-m", "tvg.train", *overrides],
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


@pytest.mark.timeout(600)
def test_two_ranks_equal_one(tiny_checkpoint, tiny_world, tmp_path):
    one, logged = train(
        tmp_path / "one", tiny_checkpoint, tiny_world, "data.batch_size=4", "trainer.devices=1"
    )
    two, logged_too = train(
        tmp_path / "two",
        tiny_checkpoint,
        tiny_world,
        "data.batch_size=2",
        "objective.micro_batch_size=1",  # gradients meet once a step, behind the last one
        "trainer.devices=2",
        "strategy=ddp",
    )
    before = load_file(tiny_checkpoint / "model.safetensors")
    assert any(not torch.equal(one[name], before[name]) for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=name)
    for name, values in logged.items():
        assert logged_too[name] == pytest.approx(values, rel=1e-4), name
