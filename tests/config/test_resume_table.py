"""Tests of the table of settings that a resumed run may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvg.config.compose import compose
from tvg.config.identity import identity_of
from tvg.config.resume_table import RESUME_TABLE, may_change, row_of, table_text

APPLIED = {
    "length of the run": "trainer.max_steps",
    "learning rate and weight decay": "objective.component_lr.vision",
    "learning-rate schedule": "objective.schedule.warmup_steps",
    "limits of gradients": "objective.max_grad_norm",
    "reward weights": "reward.iou.weight",
    "loggers and callbacks": "callbacks.early_stop.patience",
    "validation and logging": "trainer.val_check_interval",
    "places of files": "data.video_dir",
    "test split": "data.limit_test",
    "data loading": "data.decoder.num_threads",
    "passes and memory": "objective.micro_batch_size",
    "preflight": "objective.preflight.max_abs_diff",
    "machine": "trainer.accelerator",
}
REFUSED = {
    "sample filtering": "callbacks.sample_filtering.select.k",
    "model": "model.path (content)",
    "prompt": "prompt.template",
    "data": "data.batch_size",
    "rewards": "reward.iou.reward._target_",
    "objective": "objective.optimizer.betas",
    "sampler": "rollout.temperature",
    "seed": "seed",
    "ranks": "trainer.devices",
    "strategy and precision": "strategy.stage",
    "other trainer settings": "trainer.limit_train_batches",
}


@pytest.mark.parametrize(("group", "key"), [*APPLIED.items(), *REFUSED.items()])
def test_row_decides_about_its_keys(group, key):
    assert row_of(key).group == group
    assert may_change(key) is (group in APPLIED)


def test_every_row_is_tested():
    assert [row.group for row in RESUME_TABLE if row.is_applied] == list(APPLIED)
    assert {row.group for row in RESUME_TABLE if not row.is_applied} == set(REFUSED)


@pytest.mark.parametrize(
    "words",
    [
        ["data=charades", "model=qwen2_5_vl_7b", "strategy=deepspeed_zero2", "trainer=gpu"],
        ["objective=sft", "reward=[]", "+callbacks=[sample_filtering]"],
        ["data=mix", "model/adapter=lora", "objective=dapo", "prompt=choice", "strategy=ddp"],
    ],
)
def test_every_shipped_key_has_a_row(words):
    decides = identity_of("train", compose("train", words).cfg).decides
    assert [key for key in decides if row_of(key).group == "all other keys"] == []


def test_unknown_keys_are_refused():
    assert not may_change("something.new")


def test_documentation_shows_the_table():
    page = Path(__file__).parents[2] / "docs" / "resuming.md"
    assert table_text() in page.read_text(encoding="utf-8"), (
        "docs/resuming.md: replace its table with: python -m tvg.config.resume_table"
    )
