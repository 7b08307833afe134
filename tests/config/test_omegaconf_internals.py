"""OmegaConf's private members mean what our one file that uses them takes them for."""

from __future__ import annotations

from omegaconf import OmegaConf

from tvg.config.omegaconf_internals import full_key


def test_the_full_key_is_the_path_from_the_root():
    cfg = OmegaConf.create({"a": {"b": {"c": 1}}})
    assert full_key(cfg.a) == "a"
    assert full_key(cfg.a.b) == "a.b"
    assert full_key(cfg) == ""
