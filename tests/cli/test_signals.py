"""Tests that a signal to all processes of a training, as Slurm sends it, saves the current step."""

from __future__ import annotations

import os
import signal
import sqlite3
import time

import pytest
from helpers import real_commands as real

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def words(tiny_world, tiny_checkpoint):
    return [
        *real.small_training(tiny_world, tiny_checkpoint),
        "data.num_workers=1",
        "trainer.max_steps=3",
        "trainer.val_check_interval=3",
        "callbacks.checkpoint.every_n_train_steps=100",
        "logger=mlflow",
        "logger.mlflow.tracking_uri=sqlite:///mlflow.db",
        "run_dir=run",
    ]


@pytest.mark.parametrize(
    ("to", "number"),
    [
        ("group", signal.SIGTERM),
        ("every process", signal.SIGTERM),
        ("every process", signal.SIGUSR1),
    ],
)
def test_signal_to_all_processes_saves_the_step(words, tmp_path, to, number):
    folder = tmp_path / "w"
    process = real.start("train", words, folder, "tvg.training.grpo:GRPOModule.training_step:2")
    try:
        real.run(process)
        real.until_paused(process, folder)
        below = real.descendants(process.pid)
        assert len(below) > 1  # including the data loader's worker
        if to == "group":
            os.killpg(process.pid, number)
        else:  # like Slurm, which signals processes in any order
            for pid in (*below, process.pid):
                os.kill(pid, number)
                time.sleep(0.3)
        (folder / "go_on").touch()
        code, _, err = real.finish(process)
        assert code == 0, err
        assert "Traceback" not in err
        assert "saved run/checkpoints/last.ckpt" in err.splitlines()
        assert real.are_gone(below)
        with sqlite3.connect(folder / "mlflow.db") as store:
            assert store.execute("select status from runs").fetchall() == [("KILLED",)]
        real.completes("train", [*words, "resume=true"], folder)
        assert (folder / "run" / "export" / "model.safetensors").is_file()
    finally:
        real.kill(process)
