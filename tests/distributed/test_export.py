"""Tests that tvg-export reads the folders that sharded strategies write as checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROJECT = Path(__file__).parents[2]

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]


def run(folder: Path, command: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tvg.cli.{command}", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_export_of_a_sharded_checkpoint_equals_the_export_of_the_run(
    tiny_checkpoint, tiny_world, tmp_path, adapter
):
    run(
        tmp_path,
        "train",
        "run_dir=run",
        f"model.path={tiny_checkpoint}",
        f"model/adapter={adapter}",
        "data.world=null",
        *(f"data.{split}_file={tiny_world}/{split}.json" for split in ("train", "val", "test")),
        f"data.video_dir={tiny_world}/videos",
        "data.batch_size=2",
        "objective=sft",
        "reward=[]",
        "prompt=short",
        "objective.optimizer.lr=1e-2",
        "objective.schedule.warmup_steps=0",
        "rollout.max_new_tokens=4",
        "trainer=cpu",
        "trainer.devices=2",
        "strategy=fsdp2",
        "trainer.max_steps=2",
        "trainer.limit_val_batches=0",
        "logger=[]",
    )
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").resolve().is_dir()
    run(tmp_path, "export", "run_dir=run", "folder=exported")
    found = load_file(tmp_path / "exported" / "model.safetensors")
    expected = load_file(tmp_path / "run" / "export" / "model.safetensors")
    before = load_file(tiny_checkpoint / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert any(not torch.equal(found[name], before[name]) for name in found)
