"""Tests that a resumed run applies the changed settings of each row of the resume table."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tvg.jobs.train as job


def words_of(world: Path, checkpoint: Path) -> list[str]:
    return [
        "data=custom",
        f"data.train_file={world / 'train.json'}",
        f"data.val_file={world / 'val.json'}",
        f"data.video_dir={world / 'videos'}",
        "data/cache=none",
        "data.num_workers=0",
        "data.batch_size=2",
        f"model.path={checkpoint}",
        "prompt=short",
        "objective.optimizer.lr=1e-3",
        "objective.optimizer.weight_decay=0.01",
        "objective.schedule.name=linear",
        "rollout.max_new_tokens=4",
        "trainer=cpu",
        "trainer.max_steps=2",
        "trainer.limit_val_batches=0",
        "callbacks=[checkpoint,run_record]",
        "logger=[csv]",
    ]


SFT = ["objective=sft", "reward=[]", "objective.component_lr.vision=1e-4"]
GRPO = ["objective=grpo", "objective.group_size=2", "reward=[format,iou]", "prompt.think=false"]
GRPO += ["reward.format.reward.think=false", "callbacks=[checkpoint,run_record,early_stop]"]
GRPO += ["callbacks.early_stop.window=1", "callbacks.early_stop.patience=1"]


class Run:
    """A finished run in its own folder, and what its resumed run was built from."""

    def __init__(self, folder: Path, words: list[str], command: Callable[..., Any]) -> None:
        self.folder = folder
        self.words = words
        self.command = command
        self.module: Any = None
        self.trainer: Any = None

    def resumed(self, *changes: str, steps: int = 3) -> Run:
        """Resumes the run for one more step, with changes."""
        words = [*self.words, f"run_dir={self.folder}", f"trainer.max_steps={steps}", *changes]
        done = self.command("train", *words, "resume=true")
        assert done.code == 0, done.err
        return self

    def rows(self, version: int = 1) -> list[dict[str, str]]:
        with (self.folder / "csv" / f"version_{version}" / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    def logged(self, name: str) -> list[float]:
        return [float(row[name]) for row in self.rows() if row.get(name)]

    @property
    def checkpoint(self) -> dict[str, Any]:
        return torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "config.yaml").read_text())


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(command, kept, tmp_path, tiny_world, tiny_checkpoint, monkeypatch):
    """Returns a function that copies the finished run of some words."""
    trainer_of, module_of = job.build_trainer, job.build_module

    def make(kind: str, words: list[str]) -> Run:
        words = [*words_of(tiny_world, tiny_checkpoint), *words]
        if not (kept / kind).exists():
            done = command("train", *words, f"run_dir={kept / kind}")
            assert done.code == 0, done.err
        run = Run(Path(shutil.copytree(kept / kind, tmp_path / "run")), words, command)

        def build_trainer(*args: Any, **named: Any) -> Any:
            run.trainer = trainer_of(*args, **named)
            return run.trainer

        def build_module(*args: Any, **named: Any) -> Any:
            run.module = module_of(*args, **named)
            return run.module

        monkeypatch.setattr(job, "build_trainer", build_trainer)
        monkeypatch.setattr(job, "build_module", build_module)
        return run

    return make


def test_learning_rate_and_weight_decay_replace_the_restored_ones(finished):
    run = finished("sft", SFT).resumed(
        "objective.optimizer.lr=6e-3",
        "objective.optimizer.weight_decay=0.5",
        "objective.component_lr.vision=3e-4",
    )
    assert run.logged("train/learning_rate") == pytest.approx([2e-3])  # 6e-3 * 1/3
    groups = run.checkpoint["optimizer_states"][0]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {6e-3, 3e-4}
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0] * 2
    assert run.config["objective"]["optimizer"]["lr"] == 6e-3
    former = yaml.safe_load((run.folder / "config.1.yaml").read_text())
    assert former["objective"]["optimizer"]["lr"] == 1e-3
    held = json.loads((run.folder / "identity.json").read_text())["decides"]
    assert held["objective.optimizer.lr"] == 6e-3
    log = (run.folder / "train.log").read_text()
    assert "resumed with changed settings: objective.component_lr.vision, " in log


@pytest.mark.slow
def test_schedule_continues_as_the_new_one(finished):
    run = finished("sft", SFT).resumed("objective.schedule.name=constant")
    assert run.logged("train/learning_rate") == pytest.approx([1e-3])


@pytest.mark.slow
def test_limits_of_gradients_are_applied(finished):
    run = finished("sft", SFT).resumed(
        "objective.max_grad_norm=1e-3", "objective.max_skipped_steps=2"
    )
    assert run.module.max_grad_norm == 1e-3
    assert run.module.skipped_steps.max_in_a_row == 2


@pytest.mark.slow
def test_length_counts_all_parts_of_the_run(finished):
    run = finished("sft", SFT)
    run.resumed("trainer.max_time=00:00:00:00", "trainer.max_epochs=9", steps=9)
    assert run.trainer.global_step == 2, "the time of the first part is over the limit"


@pytest.mark.slow
def test_reward_weights_score_the_next_rollout(finished):
    run = finished("grpo", GRPO).resumed("reward.iou.weight=7.0")
    (row,) = [row for row in run.rows() if row.get("train/reward/total")]
    parts = {name: float(row[f"train/reward/{name}"]) for name in ("format", "iou")}
    expected = 1.0 * parts["format"] + 7.0 * parts["iou"]
    assert float(row["train/reward/total"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_changed_reward_weights_reset_early_stopping(finished):
    run = finished("grpo", GRPO)
    states = run.checkpoint["callbacks"]
    assert states["RewardPlateau"]["best_step"] > 0
    run.resumed("reward.iou.weight=0.5")
    assert run.checkpoint["callbacks"]["RewardPlateau"]["best_step"] == 3


@pytest.mark.slow
def test_loggers_and_callbacks_are_applied(finished):
    run = finished("grpo", GRPO)
    run.resumed(
        "logger=[csv,tensorboard]",
        "callbacks=[checkpoint,run_record,early_stop,rollout_table]",
        "callbacks.rollout_table.every_n_steps=1",
        "callbacks.early_stop.patience=77",
        "callbacks.checkpoint.every_n_train_steps=1",
    )
    assert list((run.folder / "tensorboard").glob("events*"))
    assert (run.folder / "rollouts.jsonl").is_file()
    (plateau,) = [c for c in run.trainer.callbacks if type(c).__name__ == "RewardPlateau"]
    assert plateau.patience == 77


@pytest.mark.slow
def test_validation_settings_are_applied(finished):
    run = finished("sft", SFT).resumed(
        "trainer.limit_val_batches=1.0", "trainer.val_check_interval=1", "data.eval_batch_size=2"
    )
    assert run.logged("val/miou")


@pytest.mark.slow
def test_moved_files_are_found(finished, tiny_world, tmp_path):
    world = Path(shutil.copytree(tiny_world, tmp_path / "moved"))
    finished("sft", SFT).resumed(
        f"data.train_file={world / 'train.json'}",
        f"data.val_file={world / 'val.json'}",
        f"data.video_dir={world / 'videos'}",
    )


@pytest.mark.slow
def test_data_loading_and_passes_change_no_weight(finished):
    base = finished("sft", SFT)
    other = Run(Path(shutil.copytree(base.folder, base.folder.parent / "b")), base.words, None)
    other.command = base.command
    base.resumed()
    other.resumed(
        "data.memory_cache=true",
        "data.decoder.num_threads=2",
        "data.limit_test=1",
        "objective.micro_batch_size=2",
        "model.gradient_checkpointing=true",
        "trainer.accelerator=auto",
    )
    expected = base.checkpoint["state_dict"]
    for name, value in other.checkpoint["state_dict"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert base.module.micro_batch_size == 2  # of the last run that was built


@pytest.mark.slow
def test_preflight_may_be_left_out(finished):
    run = finished("grpo", GRPO).resumed("objective.preflight=null")
    assert run.module.preflight is None
