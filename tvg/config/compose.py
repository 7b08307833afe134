"""Composes configs and keeps track of the options that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from tvg.config.errors import ConfigError
from tvg.config.nodes import raw_at, walk
from tvg.config.resolvers import register_resolvers

# In the repository, a link to the top-level folder; in a wheel, the folder itself.
CONF_DIR = (Path(__file__).resolve().parents[1] / "conf").resolve()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A chosen option of a config group."""

    name: str  # group/option, e.g. data/synthetic
    package: str  # path of its keys in the config, e.g. data


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A config, the same config without overlays, and the options that it is made of.

    Hydra merges an experiment file (`# @package _global_`) without checking that its keys exist.
    `known` holds the keys that do: those of the main config and of all groups, with the same
    options chosen.
    """

    cfg: DictConfig
    known: DictConfig
    added: tuple[str, ...]  # keys that the user added on purpose: +key=value
    entries: tuple[Entry, ...]
    # files left out of `known`, e.g. experiment/demo; without the empty options `none`
    overlays: tuple[str, ...]


def current_composition(cfg: DictConfig) -> Composition:
    """Returns the composition of the running @hydra.main function's config."""
    settings = HydraConfig.get()
    assert settings.job.config_name is not None
    words: Any = OmegaConf.to_container(settings.overrides.task, resolve=False)
    return _composition(cfg, settings.job.config_name, [str(word) for word in words])


def compose(
    config_name: str, overrides: Sequence[str] = (), *, conf_dir: Path = CONF_DIR
) -> Composition:
    """Composes a config as the command of that name would, without running anything.

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
    """Returns the text of `--help`: Hydra's template, filled in without reading unused groups.

    Hydra itself lists the options of all groups, even for a template that does not show them.
    """
    with _initialised(conf_dir, config_name):
        cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        template = Template(cfg.hydra.help.template)
        with open_dict(cfg):
            del cfg["hydra"]
        return template.substitute(CONFIG=OmegaConf.to_yaml(cfg))


def have_sweep(overrides: Sequence[str]) -> bool:
    """True if a word of the command line gives several values (seed=1,2)."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return any(override.is_sweep_override() for override in parsed)


def keys_of(config_name: str, overrides: Sequence[str], *, conf_dir: Path = CONF_DIR) -> set[str]:
    """Returns the paths of all keys of a config."""
    with _initialised(conf_dir, config_name):
        return {path for path, _, _ in walk(hydra.compose(config_name, list(overrides)))}


def compose_option(group: str, option: str, *, conf_dir: Path = CONF_DIR) -> DictConfig:
    """Returns the node of one option of a config group alone, e.g. "prompt", "think".

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
    """Resolves `${hydra:...}`, which would later refer to another run, or to none."""
    for _, parent, key in list(walk(cfg)):
        value = raw_at(parent, key)
        if isinstance(value, str) and "${hydra:" in value:
            parent[key] = parent[key]


@contextmanager
def _initialised(conf_dir: Path, job_name: str) -> Iterator[None]:
    """Lets Hydra compose from a folder, whether or not a command is running."""
    register_resolvers()
    with (
        _outside_any_run(),
        hydra.initialize_config_dir(str(conf_dir), version_base="1.3", job_name=job_name),
    ):
        yield


@contextmanager
def _outside_any_run() -> Iterator[None]:
    """Sets Hydra's global state aside, so that a running command can compose another one."""
    running, settings = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running
        HydraConfig.instance().cfg = settings


def _composition(cfg: DictConfig, config_name: str, overrides: list[str]) -> Composition:
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    defaults = loader.compute_defaults_list(config_name, overrides, RunMode.RUN).defaults
    mine = [
        d for d in defaults if d.config_path and not d.config_path.startswith(("hydra/", "_dummy"))
    ]
    overlays = [d for d in mine if d.package == "" and "/" in str(d.config_path)]
    named = tuple(p for d in overlays if not (p := str(d.config_path)).endswith("/none"))
    known = cfg
    if named:  # options `none` add no key, and a composition takes half a second
        # Hydra has no public way to compose part of a defaults list.
        repo = loader._parse_overrides_and_create_caching_repo(config_name, overrides)[1]  # type: ignore[attr-defined]
        known = loader._compose_config_from_defaults_list(  # type: ignore[attr-defined]
            defaults=[d for d in defaults if d not in overlays], repo=repo
        )
        OmegaConf.set_struct(known, False)
        known.pop("hydra", None)
    return Composition(
        cfg=cfg,
        known=known,
        added=tuple(o.key_or_group for o in parsed if o.is_add() or o.is_force_add()),
        entries=tuple(
            Entry(name=str(d.config_path), package=str(d.package))
            for d in mine
            if d not in overlays and d.package
        ),
        overlays=named,
    )
