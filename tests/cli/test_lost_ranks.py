"""Tests of ranks that end, are late, or run out of memory, with two processes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.real_commands import are_gone, small_training
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Runs tvg-train with a planted fault. Lightning and torchrun start each rank with this script.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import torch
from tvg.data.video.clip import ClipLoader
from tvg.training import grpo, train_batch

FAULT = os.environ["PLANTED"]
RANK = os.environ.get("LOCAL_RANK", "0")
Path(f"pid_{RANK}").write_text(str(os.getpid()))

def on_call(owner, name, number, act):
    function, calls = getattr(owner, name), []
    def planted(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            Path(f"fault_{RANK}").touch()
            act()
        return function(*arguments, **named)
    setattr(owner, name, planted)

def end():
    os.kill(os.getpid(), signal.SIGKILL)

if FAULT == f"kill_{RANK}":
    on_call(grpo.GRPOModule, "update", 2, end)
if FAULT == "slow" and RANK == "1":
    on_call(ClipLoader, "load", 3, lambda: time.sleep(60))
if FAULT == "memory" and RANK == "1":
    logprobs = train_batch.Scorer.logprobs
    def limited(self, policy, rollout):
        found = logprobs(self, policy, rollout)
        if torch.is_grad_enabled() and len(rollout.completion_ids) > 1:
            raise torch.OutOfMemoryError("planted")
        return found
    train_batch.Scorer.logprobs = limited

from tvg.cli.train import main
main()
"""


# Without differing rewards, gradients are zero, and Adam amplifies their rounding.
REWARD = """
def odd(*, texts):
    return [sum(map(ord, text)) % 7 for text in texts]
"""
ODD = [
    "+reward.odd.weight=1.0",
    "+reward.odd.reward._target_=odd.odd",
    "+reward.odd.reward._partial_=true",
    "objective.optimizer._target_=torch.optim.SGD",
    "~objective.optimizer.betas",
]


def start(
    folder, world, checkpoint, *more, fault="none", launcher="lightning", place=("run_dir=run",)
):
    (folder / "tvg-train.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [
        *small_training(world, checkpoint),
        "data.num_workers=0",
        "objective.micro_batch_size=2",
        "objective.loss.kl_coef=0.1",
        "objective.optimizer.lr=1e-3",
        "trainer.devices=2",
        "strategy=ddp",
        "trainer.max_steps=3",
        "trainer.limit_val_batches=0",
        "callbacks=[checkpoint]",
        "callbacks.checkpoint.every_n_train_steps=1",
        "logger=[csv]",
        *place,
        *more,
    ]
    command = [sys.executable, *(torchrun if launcher == "torchrun" else []), "tvg-train.py"]
    return subprocess.Popen(
        [*command, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PLANTED": fault},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_killed_rank_ends_the_other_with_the_cause(tiny_world, tiny_checkpoint, tmp_path, launcher):
    process = start(tmp_path, tiny_world, tiny_checkpoint, fault="kill_1", launcher=launcher)
    code, _, err = finish(process)
    assert code != 0
    assert time.time() - (tmp_path / "fault_1").stat().st_mtime < 60
    assert "another process of this run has ended, or did not answer" in err
    assert "its own output has the cause" in err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_killed_first_rank_ends_the_others(tiny_world, tiny_checkpoint, tmp_path):
    process = start(tmp_path, tiny_world, tiny_checkpoint, fault="kill_0")
    code, _, err = finish(process)  # returns when rank 1 has closed its output, too
    assert code == -9
    assert time.time() - (tmp_path / "fault_0").stat().st_mtime < 60
    assert "another process of this run has ended, or did not answer" in err
    assert are_gone([int((tmp_path / "pid_1").read_text())])


def test_slow_decode_ends_nothing(tiny_world, tiny_checkpoint, tmp_path):
    code, _, err = finish(start(tmp_path, tiny_world, tiny_checkpoint, fault="slow"))
    assert (tmp_path / "fault_1").exists(), "the decode of a minute was not planted"
    assert code == 0, err


def test_rank_that_is_silent_beyond_the_timeout_ends_the_run(tiny_world, tiny_checkpoint, tmp_path):
    words = ["strategy.timeout.minutes=0", "+strategy.timeout.seconds=10"]
    code, _, err = finish(start(tmp_path, tiny_world, tiny_checkpoint, *words, fault="slow"))
    assert code != 0
    assert "did not answer within strategy.timeout" in err


def test_all_ranks_repeat_a_step_that_runs_out_of_memory_on_one(
    tiny_world, tiny_checkpoint, tmp_path
):
    exports = {}
    for fault in ("none", "memory"):
        folder = tmp_path / fault
        folder.mkdir()
        (folder / "odd.py").write_text(REWARD)
        words = [*ODD, f"train.retry_on_oom={fault == 'memory'}"]
        code, _, err = finish(start(folder, tiny_world, tiny_checkpoint, *words, fault=fault))
        assert code == 0, err
        assert ("The step is repeated" in err) is (fault == "memory")
        exports[fault] = load_file(folder / "run" / "export" / "model.safetensors")
    before = load_file(Path(tiny_checkpoint) / "model.safetensors")
    assert any(not torch.equal(before[name], value) for name, value in exports["none"].items())
    for name, value in exports["none"].items():
        torch.testing.assert_close(exports["memory"][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_torchrun_without_a_name_uses_one_run_folder(tiny_world, tiny_checkpoint, tmp_path):
    process = start(tmp_path, tiny_world, tiny_checkpoint, launcher="torchrun", place=())
    code, _, err = finish(process)
    assert code == 0, err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("torchrun_")
    assert (folder / "export" / "model.safetensors").is_file()
