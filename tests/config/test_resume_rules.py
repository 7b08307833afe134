"""Tests of the settings that a resumed run may change, and of the messages of refusals."""

from __future__ import annotations

import pytest

from tvg.config.identity import Identity
from tvg.config.resume_rules import refuse_changes

NOW = {"model._target_": "tvg.model.loading.ModelSource", "seed": 0, "trainer.max_steps": 10}


def refusal(**before) -> str:
    with pytest.raises(ValueError, match=r"^resume: run/last\.ckpt was trained") as caught:
        refuse_changes(
            {**NOW, **before}, Identity(command="train", decides=NOW), where="run/last.ckpt"
        )
    return str(caught.value)


def test_resumed_run_may_be_longer():
    refuse_changes(
        {**NOW, "trainer.max_steps": 5}, Identity(command="train", decides=NOW), where="run"
    )


def test_refusal_names_both_values():
    message = refusal(seed=3)
    assert "seed was 3, is 0 (seed: Every random draw" in message
    assert message.endswith("restore them, or start a new run under another name")


def test_refusal_of_older_version_suggests_its_export():
    message = refusal(**{"data.clip._target_": "tvg.data.clip.ClipLoader"})
    assert "an older version of tvg (tvg.data.clip.ClipLoader was renamed)" in message
    assert message.endswith("(model.path=RUN_FOLDER/export)")


def test_rates_of_parts_may_change_within_their_groups():
    rates = {"vision": 1e-6, "merger": None, "language": None}
    before = {f"objective.component_lr.{part}": rate for part, rate in rates.items()}
    now = {**before, "objective.component_lr.vision": 5e-6}
    refuse_changes(before, Identity(command="train", decides=now), where="run")


def test_rates_that_regroup_the_optimizer_are_refused():
    rates = {"vision": 1e-6, "merger": None, "language": None}
    before = {f"objective.component_lr.{part}": rate for part, rate in rates.items()}
    now = {**before, "objective.component_lr.merger": 5e-6}
    with pytest.raises(ValueError, match=r"component_lr.merger was null, is 5e-06.*same parts"):
        refuse_changes(before, Identity(command="train", decides=now), where="run")
