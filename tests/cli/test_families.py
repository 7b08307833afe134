"""Tests one GRPO step and the evaluation of its export for each model family."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SMALL = [
    "prompt=short",
    "trainer=cpu",
    "trainer.max_steps=1",
    "trainer.limit_val_batches=0",
    "trainer.enable_progress_bar=false",
    "data.batch_size=2",
    "objective.micro_batch_size=1",
    "objective.group_size=2",
    "objective.loss.kl_coef=0.04",
    "objective.optimizer.lr=1e-3",
    "rollout.max_new_tokens=6",
    "logger=csv",
    "+reward.length={weight:1.0,reward:{_target_:helpers.tiny_policy.LengthReward}}",
]
FAMILIES = {
    "tiny_qwen2_vl": ["prompt.frame_times='{time_s:.1f}s'"],
    "tiny_qwen3_vl": ["data/clip=one_token_32"],
    "tiny_internvl": ["prompt.frame_times='{time_s:.1f}s '"],
}


@pytest.mark.parametrize("model", FAMILIES)
def test_grpo_step_and_evaluation_of_the_export(command, world, tmp_path, model):
    words = [f"model={model}", *FAMILIES[model]]
    done = command("train", *world, *SMALL, *words, f"run_dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert "sampler and trainer agree" in done.err
    row = read_metrics(tmp_path / "run")
    assert math.isfinite(float(row["train/loss"]))
    assert float(row["train/policy/sampler_gap"]) < 1e-4
    assert float(row["train/grad_norm"]) > 0
    before = load_file(tmp_path / "run" / "tiny" / "model.safetensors")
    after = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    for part in (("visual.blocks", "vision_tower"), ("merger", "projector"), ("self_attn",)):
        assert any(name in whole for name in part for whole in changed), part

    evaluated = command(
        "evaluate",
        *world,
        f"model.path={tmp_path / 'run' / 'export'}",
        "data.eval_batch_size=4",
        "logger=[]",
        "rollout.max_new_tokens=6",
        f"run_dir={tmp_path / 'eval'}",
    )
    assert evaluated.code == 0, evaluated.err
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["n"] == 4


def read_metrics(run_dir: Path) -> dict[str, str]:
    header, *rows = (run_dir / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    cells = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    return {name: value for row in cells for name, value in row.items() if value}


def test_frame_sizes_of_another_family_are_refused(command, world, tmp_path):
    done = command("train", *world, *SMALL, "model=tiny_qwen3_vl", f"run_dir={tmp_path / 'run'}")
    assert "data.clip.sampling.resize_factor: frames of " in done.error
    assert "this model's tokens of 32 x 32 pixels" in done.error
    assert "data/clip=qwen3" in done.error
