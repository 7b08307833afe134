"""Starts training processes and kills them at a defined point of their work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

Process = subprocess.Popen[str]


def start_training(run_dir: Path, overrides: Sequence[str], **environment: str) -> Process:
    """Starts tvg-train, which can import modules next to `run_dir`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tvg.cli.train", f"hydra.run.dir={run_dir}", *overrides],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(run_dir.parent),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: Process) -> str:
    """Waits for a run, checks that it succeeded, and returns its output."""
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output[-3000:]
    return output


def kill_when_there(process: Process, marker: Path) -> None:
    """Sends SIGKILL as soon as the file `marker` exists."""
    while not marker.exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL


def assert_same(one: Any, other: Any) -> None:
    """Checks bitwise equality, including tensors in nested containers."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other
