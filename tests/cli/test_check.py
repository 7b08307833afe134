"""Tests of tvg-check with one process, and with two that torchrun or Lightning starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ["accelerator=cpu", "write_mib=1", "reduce_mib=1", "limits.free_gib=0"]
SMALL += ["limits.write_mib_s=0", "limits.shm_gib=0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]


def test_one_process_prints_its_table_and_leaves_no_file(command, tmp_path):
    done = command("check", *SMALL)
    assert done.code == 0, done.err
    for text in ("1 processes on 1 hosts", "run_dir free, written", "one process: nothing was"):
        assert text in done.out
    assert list(tmp_path.iterdir()) == []


def test_every_problem_is_one_line(command, tmp_path):
    (tmp_path / "file").touch()
    error = command(
        "check", *SMALL, "limits.memory_gib=1e6", "folders.cache=file/cache", "limits.free_gib=1e6"
    ).error
    first, *lines = error.splitlines()
    assert first == "3 problems found:"
    assert [line.split(":")[0] for line in lines] == [
        "  - limits.memory_gib",
        "  - limits.free_gib",
        "  - folders.cache",
    ]


def test_missing_gpu_is_an_error(command):
    assert command("check", "accelerator=gpu").error.startswith("accelerator: gpu, but torch ")


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def check_table(out: str, folder: Path) -> None:
    assert "2 processes on 1 hosts" in out
    assert "│ 0-1 " in out
    assert "gloo: all-reduce of 1 MiB in " in out
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_two_processes_compare_themselves(tmp_path, launcher):
    start = TORCHRUN if launcher == "torchrun" else [sys.executable]
    more = [] if launcher == "torchrun" else ["devices=2"]
    done = run([*start, "-m", "tvg.cli.check", *SMALL, *more], tmp_path)
    assert done.returncode == 0, done.stderr
    check_table(done.stdout, tmp_path)


@pytest.mark.slow
def test_tasks_of_srun_compare_themselves(tmp_path):
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "tvg", "SLURM_STEP_ID": "0"}
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NNODES": "1"}
    job |= {"SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2", "MASTER_ADDR": "127.0.0.1"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "tvg.cli.check", *SMALL],
            cwd=tmp_path,
            env={**os.environ, **job, "SLURM_PROCID": task, "SLURM_LOCALID": task},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in ("0", "1")
    ]
    (out, err), (_, other) = [task.communicate(timeout=280) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], err + other
    check_table(out, tmp_path)


@pytest.mark.slow
def test_missing_process_is_reported(tmp_path):
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617"}
    environment |= {"TORCHELASTIC_RUN_ID": "alone"}
    words = [f"{name}={value}" for name, value in environment.items()]
    alone = [sys.executable, "-m", "tvg.cli.check", *SMALL, "timeout_s=5"]
    done = run(["env", *words, *alone], tmp_path)
    assert done.returncode == 2, done.stderr
    assert "timeout_s: the 2 processes did not reach each other within 5 s: " in done.stderr
