"""Tests that each objective trains a tiny policy with two updates per rollout."""

import math
from pathlib import Path

import pytest

SMALL = [
    "model=tiny",
    "prompt=short",
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.limit_val_batches=0",
    "trainer.enable_progress_bar=false",
    "data.batch_size=2",
    "data/clip=one_token",
    "objective.micro_batch_size=1",
    "objective.group_size=4",
    "objective.num_updates=2",
    "objective.optimizer.lr=1e-2",
    "objective.schedule.name=constant",
    "objective.preflight=null",
    "rollout.max_new_tokens=6",
    "callbacks=[]",
    "logger=csv",
    "reward=[]",
    "+reward.length={weight:1.0,reward:{_target_:helpers.tiny_policy.LengthReward}}",
]
# objective -> overrides. The second update must report that the policy changed after sampling.
OBJECTIVES = {
    "grpo": [],
    "grpo_token_mean": ["objective.advantage.baseline=leave_one_out"],
    "dr_grpo": ["objective.loss.entropy_coef=0.01"],
    "dapo": ["objective.loss.mask_truncated=false"],  # no completion ends within six tokens
    "gspo": ["objective.loss.kl_coef=0.1", "objective.loss.kl_estimator=k2"],
    "cispo": ["objective.loss.sampler_ratio_cap=2.0", "objective.advantage.scale=batch_std"],
    "bnpo": [
        "objective.loss.kl_coef=0.1",
        "objective.loss.kl_in=reward",
        "objective.loss.kl_estimator=k1",
    ],
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_updates_per_rollout(command, world, tiny_checkpoint, tmp_path, objective):
    done = command(
        "train",
        *world,
        f"objective={objective}",
        f"model.path={tiny_checkpoint}",
        *SMALL,
        *OBJECTIVES[objective],
        f"run_dir={tmp_path / 'run'}",
    )
    assert done.code == 0, done.err
    row = read_metrics(tmp_path / "run")
    assert all(math.isfinite(value) for value in row.values())
    assert row["train/grad_norm"] > 0
    assert row["train/policy/importance_ratio"] != 1
    assert row["train/policy/clip_fraction"] > 0
    words = " ".join(OBJECTIVES[objective])
    assert ("train/policy/kl" in row) is ("kl_coef" in words)
    assert ("train/reward/kl_penalty" in row) is ("kl_in=reward" in words)
    assert ("train/policy/sampler_weight" in row) is ("sampler_ratio_cap" in words)


def read_metrics(run_dir: Path) -> dict[str, float]:
    """Returns the last value of each metric."""
    header, *rows = (run_dir / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    cells = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    return {name: float(value) for row in cells for name, value in row.items() if value}


def test_dynamic_sampling_stops_at_the_end_of_an_epoch(command, world, tiny_checkpoint, tmp_path):
    """A run in which all groups have equal rewards must not sample for ever without a step."""
    done = command(
        "train",
        *world,
        "objective=dapo",
        f"model.path={tiny_checkpoint}",
        *[word for word in SMALL if not word.startswith(("reward", "+reward"))],
        "reward=[format]",  # no completion of six tokens has the format
        "data.limit_train=4",
        f"run_dir={tmp_path / 'run'}",
    )
    assert done.code == 0, done.err
    row = read_metrics(tmp_path / "run")
    assert row["train/sampling/kept_groups"] == 0
    assert row["train/sampling/batches"] == 2  # one epoch
