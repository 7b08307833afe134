"""Tests that Hydra's private members behave as `tvg.config.hydra_internals` expects."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tvg.config.hydra_internals import (
    DefaultsList,
    Entry,
    added_keys,
    have_sweep,
    outside_any_run,
)


@pytest.fixture
def initialised(conf_dir):
    (conf_dir / "experiment").mkdir()
    (conf_dir / "experiment/e.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: big\nseed: 5\nnew: 1\n"
    )
    with outside_any_run(), hydra.initialize_config_dir(str(conf_dir), version_base="1.3"):
        yield


def test_entries_are_the_chosen_options_with_their_packages(initialised):
    found = DefaultsList("train", ["experiment=e", "logger=[two]"]).entries()
    assert found == [
        Entry(name="model/big", package="model"),
        Entry(name="data/a", package="data"),
        Entry(name="reward/iou", package="reward"),
        Entry(name="logger/two", package="logger"),
        Entry(name="experiment/e", package=""),
    ]


def test_compose_without_keeps_the_choices_of_experiment(initialised):
    defaults = DefaultsList("train", ["experiment=e", "logger=[two]"])
    cfg = defaults.compose_without(["experiment/e"])
    assert cfg.model.width == 8  # chosen by the overlay
    assert list(cfg.logger) == ["two"]
    assert cfg.seed == 0
    assert "new" not in cfg
    assert "hydra" not in cfg


def test_each_file_is_read_once(initialised, monkeypatch):
    loaded = []
    load = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda file: loaded.append(file.name) or load(file))
    DefaultsList("train", ["experiment=e"]).compose_without(["experiment/e"])
    assert "e.yaml" in {Path(name).name for name in loaded}
    assert len(loaded) == len(set(loaded))


def test_added_keys_are_those_with_a_plus(initialised):
    assert added_keys(["seed=1", "+a.b=2", "++c=3", "~logger"]) == ("a.b", "c")


@pytest.mark.parametrize(
    ("word", "is_sweep"), [("seed=1,2", True), ("seed=range(1,3)", True), ("reward=[a,b]", False)]
)
def test_override_with_several_values_is_a_sweep(word, is_sweep):
    assert have_sweep(["name=x", word]) == is_sweep


def test_hydra_state_is_restored(conf_dir):
    with hydra.initialize_config_dir(str(conf_dir), version_base="1.3"):
        running, settings = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        with outside_any_run():
            assert not GlobalHydra.instance().is_initialized()
            HydraConfig.instance().cfg = None
        assert GlobalHydra.instance().hydra is running
        assert HydraConfig.instance().cfg is settings
