"""Tests that tvg-export writes the same folder as the run, from any checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

WORDS = (
    "prompt=short",
    "trainer=cpu",
    "trainer.max_steps=3",
    "trainer.val_check_interval=1",
    "trainer.enable_progress_bar=false",
    "objective=sft",
    "reward=[]",
    "objective.optimizer.lr=1e-2",
    "data.batch_size=2",
    "data.limit_val=2",
    "rollout.max_new_tokens=4",
    "callbacks=[checkpoint,run_record]",
    "callbacks.checkpoint.every_n_train_steps=1",
    "callbacks.checkpoint.keep_best=val/parse_rate",
    "logger=[]",
)
VARIANTS = {
    "full": (),
    "lora": ("model/adapter=lora", "model.adapter.rank=2"),
    "bf16": ("trainer.precision=bf16-true", "model/adapter=lora"),
}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def trained(command, world, tiny_checkpoint, tmp_path):
    """Returns a function that trains a variant in `run` from a copy of the tiny checkpoint."""

    def train(variant: str) -> Path:
        shutil.copytree(tiny_checkpoint, tmp_path / "initial")
        words = [*world, *WORDS, *VARIANTS[variant], f"model.path={tmp_path / 'initial'}"]
        done = command("train", *words, "run_dir=run")
        assert done.code == 0, done.err
        return tmp_path / "run"

    return train


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_export_of_the_last_checkpoint_equals_the_run(trained, command, variant):
    run = trained(variant)
    done = command("export", "run_dir=run")
    assert done.code == 0, done.err
    own = files(run / "export")
    assert files(run / "exports" / "step_00000003") == own
    assert {"model.safetensors", "weights.sha256", "tvg.yaml"} <= own.keys()
    assert ("adapter/adapter_model.safetensors" in own) == (variant != "full")


@pytest.mark.slow
def test_chosen_checkpoint_is_exported(trained, command, tmp_path):
    run = trained("full")
    last = load_file(run / "export" / "model.safetensors")
    assert command("export", "run_dir=run", "checkpoint=2", "folder=second").code == 0
    state = torch.load(run / "checkpoints" / "step_00000002.ckpt", weights_only=True)["state_dict"]
    second = load_file(tmp_path / "second" / "model.safetensors")
    name = next(name for name in second if name.endswith("q_proj.weight"))
    assert not torch.equal(second[name], last[name])
    assert any(torch.equal(second[name], value) for value in state.values())
    assert command("export", "run_dir=run", "checkpoint=best", "folder=best").code == 0
    best = (run / "checkpoints" / "best.ckpt").resolve()
    assert command("export", "run_dir=run", f"checkpoint={best}", "folder=by_path").code == 0
    assert files(tmp_path / "best") == files(tmp_path / "by_path")
    error = command("export", "run_dir=run", "checkpoint=7").error
    assert "step_00000007.ckpt does not exist; " in error
    assert "step_00000003.ckpt, step_00000002.ckpt" in error

    newest = run / "checkpoints" / "step_00000003.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = command("export", "run_dir=run", "folder=newest_intact")
    assert done.code == 0, done.err
    assert f"checkpoint: {newest.relative_to(tmp_path)}: is truncated" in done.err + done.out
    assert files(tmp_path / "newest_intact") == files(tmp_path / "second")
    assert "is truncated" in command("export", "run_dir=run", "checkpoint=3").error


@pytest.mark.slow
def test_unsuitable_run_or_folder_is_named(trained, command, tmp_path):
    run = trained("full")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert command("export", "run_dir=run", "folder=mine").error.startswith("folder: mine exists")
    assert (tmp_path / "mine" / "thesis.txt").exists()

    (tmp_path / "initial").rename(tmp_path / "moved")
    error = command("export", "run_dir=run").error
    assert error.startswith(f"model_path: the run started from the weights in {tmp_path}/initial")
    done = command("export", "run_dir=run", "model_path=moved", "folder=a")
    assert done.code == 0, done.err
    assert files(tmp_path / "a") == files(run / "export")
    error = command("export", "run_dir=run", "model_path=run/export").error
    assert "belongs to a run that started from other weights" in error

    config = run / "config.yaml"
    recorded = yaml.safe_load(config.read_text())
    for change, message in (
        ({"_target_": "os.system"}, "model: expected tvg.model.loading.ModelSource, got os.system"),
        ({"adapter": {"_target_": "os.system"}}, "model.adapter: expected one of "),
        ({"colour": "red"}, "model: written by another version of tvg"),
    ):
        config.write_text(yaml.safe_dump({**recorded, "model": {**recorded["model"], **change}}))
        assert message in command("export", "run_dir=run", "model_path=moved").error
    config.unlink()
    assert "holds no config.yaml" in command("export", "run_dir=run").error
    assert not (run / "exports").exists()


def test_module_can_be_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tvg.cli.export", "run_dir=none"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tvg-export: run_dir: none holds no config.yaml")
