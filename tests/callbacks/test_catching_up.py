"""Tests of the record of the last validation."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from tvg.callbacks import catching_up
from tvg.callbacks.catching_up import ValidationRecord


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_metric_is_stored_as_null(tmp_path, monkeypatch, value):
    place = {"step": 3, "weights": "ab"}
    monkeypatch.setattr(catching_up, "_place", lambda *_: place)
    trainer = SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        callback_metrics={
            "val/miou": torch.tensor(0.25),
            "val/loss": torch.tensor(value),
            "train/loss": torch.tensor(1.0),
        },
    )
    record = ValidationRecord(run_dir=tmp_path)
    record.on_validation_end(trainer, None)
    held = json.loads((tmp_path / "validation.json").read_text())
    assert held == {**place, "metrics": {"val/miou": 0.25, "val/loss": None}}
    assert record.is_of(trainer, None)
    found = record.metrics()
    assert found["val/miou"] == 0.25
    assert math.isnan(found["val/loss"])
