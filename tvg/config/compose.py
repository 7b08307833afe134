"""Composes configs and records the options that they consist of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict

from tvg.config.errors import ConfigError
from tvg.config.hydra_internals import (
    DefaultsList,
    Entry,
    added_keys,
    outside_any_run,
)
from tvg.config.nodes import interpolations, raw, walk
from tvg.config.resolvers import register_resolvers

# In the repository, a link to the top-level folder; in a wheel, the folder itself.
CONF_DIR = (Path(__file__).resolve().parents[1] / "conf").resolve()


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A config, the same config without overlays, and the options that it consists of.

    An overlay is a file with `# @package _global_`, such as an experiment. Hydra merges it without
    checking that its keys exist. Only the check of a config needs more than `cfg`, so the rest is
    computed when it is first used.
    """

    cfg: DictConfig
    added: tuple[str, ...]  # keys that the user added with +key=value
    defaults: DefaultsList

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The chosen options of all groups, and the files that they include."""
        return tuple(entry for entry in self.defaults.entries() if entry.package)

    @cached_property
    def overlays(self) -> tuple[str, ...]:
        """Names of the overlays, e.g. experiment/demo; without the empty options `none`."""
        names = [entry.name for entry in self.defaults.entries() if entry.package == ""]
        return tuple(name for name in names if not name.endswith("/none"))

    @cached_property
    def known(self) -> DictConfig:
        """The keys that exist: those of the main config and of all groups, same options chosen."""
        # Without overlays, a second composition would give the same keys.
        return self.defaults.compose_without(self.overlays) if self.overlays else self.cfg


def current_composition(cfg: DictConfig) -> Composition:
    """Returns the composition of the running @hydra.main function's config."""
    settings = HydraConfig.get()
    assert settings.job.config_name is not None
    words: Any = OmegaConf.to_container(settings.overrides.task, resolve=False)
    return _composition(cfg, settings.job.config_name, [str(word) for word in words])


def _composition(cfg: DictConfig, config_name: str, overrides: list[str]) -> Composition:
    defaults = DefaultsList(config_name, overrides)
    return Composition(cfg=cfg, added=added_keys(overrides), defaults=defaults)


def compose(
    config_name: str, overrides: Sequence[str] = (), *, conf_dir: Path = CONF_DIR
) -> Composition:
    """Composes a config as the command `config_name` does, without running anything.

    Args:
        config_name: main config, e.g. "train".
        overrides: as on the command line.
        conf_dir: folder of the config files.
    """
    with _initialised(conf_dir, config_name):
        cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = 0
            cfg.hydra.runtime.output_dir = cfg.hydra.run.dir
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        _settle_hydra_values(cfg)
        return _composition(cfg, config_name, list(overrides))


def help_text(config_name: str, overrides: Sequence[str], *, conf_dir: Path = CONF_DIR) -> str:
    """Returns the text of `--help`: Hydra's template, filled in.

    Hydra's own function is slower: it lists the options of all groups, even if the template does
    not show them.
    """
    with _initialised(conf_dir, config_name):
        cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        template = Template(cfg.hydra.help.template)
        with open_dict(cfg):
            del cfg["hydra"]
        return template.substitute(CONFIG=OmegaConf.to_yaml(cfg))


def keys_of(config_name: str, overrides: Sequence[str], *, conf_dir: Path = CONF_DIR) -> set[str]:
    """Returns the paths of all keys of a config."""
    with _initialised(conf_dir, config_name):
        return {path for path, _ in walk(raw(hydra.compose(config_name, list(overrides))))}


def compose_option(group: str, option: str, *, conf_dir: Path = CONF_DIR) -> DictConfig:
    """Returns the config of a single option, e.g. of group "prompt" and option "think".

    Raises:
        ConfigError: there is no such option.
    """
    with _initialised(conf_dir, option):
        try:
            cfg = hydra.compose(f"{group}/{option}")
        except MissingConfigException as error:
            raise ConfigError(f"{group}: no option {option!r} in {conf_dir / group}") from error
    node: DictConfig = OmegaConf.select(cfg, group.replace("/", "."))
    return node


def _settle_hydra_values(cfg: DictConfig) -> None:
    """Resolves all `${hydra:...}` now: later, they would refer to another run or to no run."""
    for _, parent, key, text in list(interpolations(cfg)):
        if "${hydra:" in text:
            parent[key] = parent[key]


@contextmanager
def _initialised(conf_dir: Path, job_name: str) -> Iterator[None]:
    """Lets Hydra compose from a folder, also while a command is running."""
    register_resolvers()
    with (
        outside_any_run(),
        hydra.initialize_config_dir(str(conf_dir), version_base="1.3", job_name=job_name),
    ):
        yield
