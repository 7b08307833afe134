"""Tests two steps of every recipe on a tiny policy and generated data, with and without compat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.recipes import RECIPES

from tvg.recorded import RECORD_FILE

SMALL = [
    "trainer=cpu",
    "strategy=auto",
    "trainer.max_epochs=null",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.enable_progress_bar=false",
    "data.batch_size=1",
    "data.limit_val=1",
    "data/clip=one_token",
    "data.memory_cache=false",
    "rollout.max_new_tokens=4",
    "callbacks.timelines=null",
    "logger=csv",
]


def run(command, world, tiny_checkpoint, run_dir: Path, recipe: str, *words: str) -> None:
    group = [] if recipe.startswith("sft") else ["objective.group_size=2"]
    done = command(
        "train",
        f"experiment={recipe}",
        "model=tiny",
        f"model.path={tiny_checkpoint}",
        *world,
        *SMALL,
        *group,
        f"run_dir={run_dir}",
        *words,
    )
    assert done.code == 0, done.err
    header, *rows = (run_dir / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    place = header.split(",").index("train/loss")
    assert sum(row.split(",")[place] != "" for row in rows) == 2
    assert (run_dir / "export" / "config.json").is_file()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_two_steps(command, world, tiny_checkpoint, tmp_path, recipe):
    run(command, world, tiny_checkpoint, tmp_path / "run", recipe)
    record = (tmp_path / "run" / "export" / RECORD_FILE).read_text()
    assert "parser: default" in record
    assert ("{time_s:.1f}s" in record) == (recipe == "timelens_rlvr")


@pytest.mark.slow  # tests/config/test_recipes.py composes all, and the test below runs one
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_two_steps_with_compat(command, world, tiny_checkpoint, tmp_path, recipe):
    run(command, world, tiny_checkpoint, tmp_path / "run", recipe, "compat=time_r1")


def test_training_and_evaluation_with_compat(command, world, tiny_checkpoint, tmp_path):
    trained = tmp_path / "run"
    run(command, world, tiny_checkpoint, trained, "timer1_rl", "compat=time_r1")
    record = (trained / "export" / RECORD_FILE).read_text()
    for line in ("video_first: false", "lowercase: true", "parser: time_r1"):
        assert line in record
    done = command(
        "evaluate",
        "compat=time_r1",
        *world,
        "model=tiny",
        f"model.path={trained / 'export'}",
        "rollout.max_new_tokens=4",
        "logger=csv",
        f"run_dir={tmp_path / 'scored'}",
    )
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "scored" / "metrics.json").read_text())["n"] >= 3
    config = (tmp_path / "scored" / "config.yaml").read_text()
    assert "strict_recall: true" in config
    assert "video_first: true" in config
