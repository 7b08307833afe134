"""Tests that OmegaConf's private members behave as `tvg.config.omegaconf_internals` expects."""

from __future__ import annotations

from omegaconf import OmegaConf

from tvg.config.omegaconf_internals import full_key


def test_full_key_is_the_path_from_the_root():
    cfg = OmegaConf.create({"a": {"b": {"c": 1}}})
    assert full_key(cfg.a) == "a"
    assert full_key(cfg.a.b) == "a.b"
    assert full_key(cfg) == ""
