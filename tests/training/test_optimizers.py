"""Tests of 8-bit AdamW: the error for a missing package, and the arguments of bitsandbytes."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tvg.core import limits
from tvg.training.optimizers import adamw_8bit

SETTINGS = {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1}


def test_missing_bitsandbytes_package_is_reported(monkeypatch):
    monkeypatch.setattr(limits, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"objective\.optimizer: .*pip install 'tvg\[bnb\]'"):
        adamw_8bit([{"params": [torch.zeros(2)]}], **SETTINGS)


def test_groups_and_settings_are_passed_to_bitsandbytes(monkeypatch):
    given = {}

    def stand_in(params, **settings):
        given.update(params=params, **settings)
        return "made"

    monkeypatch.setattr(limits, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=stand_in))
    groups = [{"params": [torch.zeros(2)], "weight_decay": 0.0}]
    assert adamw_8bit(groups, **SETTINGS) == "made"
    assert given == {
        "params": groups,
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "weight_decay": 0.1,
        "min_8bit_size": 4096,
    }
