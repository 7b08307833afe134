"""Tests of the optimizers: fused and unfused AdamW, and 8-bit AdamW without its package."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tvg.core import limits
from tvg.training.optimizers import adamw, adamw_8bit

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


def trained(fused, *, num_steps=5):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in ((7, 5), (11,))]
    optimizer = adamw([{"params": weights[:1]}, {"params": weights[1:]}], fused=fused, **SETTINGS)
    for _ in range(num_steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return torch.cat([weight.flatten() for weight in weights])


def test_fused_steps_equal_unfused_steps_within_rounding():
    plain, fused = trained(False), trained(True)
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-7)
    assert (fused - trained(True, num_steps=4)).abs().max() > 1e-4


def test_adamw_on_cpus_keeps_torchs_default():
    weights = torch.ones(3)
    weights.grad = torch.ones(3)
    (group,) = adamw([{"params": [weights]}], **SETTINGS).param_groups
    assert group["fused"] is None
    expected = torch.optim.AdamW([weights], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    assert group.keys() == expected.param_groups[0].keys()


@pytest.mark.parametrize(
    ("devices", "fused"),
    [(["cuda", "cuda"], True), (["cuda", "cpu"], None), (["cpu"], None)],
)
def test_adamw_is_fused_if_all_weights_are_on_gpus(monkeypatch, devices, fused):
    given = {}
    monkeypatch.setattr("tvg.training.optimizers.AdamW", lambda params, **rest: given.update(rest))
    params = [SimpleNamespace(device=SimpleNamespace(type=kind)) for kind in devices]
    adamw([{"params": params}], **SETTINGS)
    assert given["fused"] is fused
    adamw([{"params": params}], fused=False, **SETTINGS)
    assert given["fused"] is False
