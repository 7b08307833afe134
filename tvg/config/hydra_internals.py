"""Contains all uses of Hydra's private members: its global state, config loader and parser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A chosen option of a config group, or a file that it includes."""

    name: str  # group/option, e.g. data/synthetic
    package: str  # path of its keys in the config, e.g. data; empty: the root of the config


@contextmanager
def outside_any_run() -> Iterator[None]:
    """Saves and restores Hydra's global state, so that a running command can compose a config."""
    running, settings = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running
        HydraConfig.instance().cfg = settings


def have_sweep(overrides: Sequence[str]) -> bool:
    """Returns whether an override has several values (seed=1,2)."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return any(override.is_sweep_override() for override in parsed)


def added_keys(overrides: Sequence[str]) -> tuple[str, ...]:
    """Returns the keys that the overrides add with +key=value."""
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    return tuple(o.key_or_group for o in parsed if o.is_add() or o.is_force_add())


def entries_of(config_name: str, overrides: Sequence[str]) -> list[Entry]:
    """Returns the options and files of a config, except the main config and Hydra's own files."""
    return [
        Entry(name=str(default.config_path), package=str(default.package))
        for default in _defaults(config_name, overrides)
        if default.config_path and not default.config_path.startswith(("hydra/", "_dummy"))
        if default.config_path != config_name and default.package is not None
    ]


def compose_without(
    left_out: Sequence[str], config_name: str, overrides: Sequence[str]
) -> DictConfig:
    """Composes a config with the same options, but without some files and overridden values.

    Hydra has no public way to compose part of a defaults list.

    Args:
        left_out: names of the files, as in `Entry.name`.
        config_name: main config.
        overrides: as on the command line.
    """
    loader, words = GlobalHydra.instance().config_loader(), list(overrides)
    kept = [d for d in _defaults(config_name, words) if d.config_path not in left_out]
    repo = loader._parse_overrides_and_create_caching_repo(config_name, words)[1]  # type: ignore[attr-defined]
    cfg: DictConfig = loader._compose_config_from_defaults_list(defaults=kept, repo=repo)  # type: ignore[attr-defined]
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra", None)
    return cfg


def _defaults(config_name: str, overrides: Sequence[str]) -> list[ResultDefault]:
    loader = GlobalHydra.instance().config_loader()
    found: list[ResultDefault] = loader.compute_defaults_list(
        config_name, list(overrides), RunMode.RUN
    ).defaults
    return found
