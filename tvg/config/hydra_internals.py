"""Contains all uses of Hydra's private members: its global state, config loader and parser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
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


class DefaultsList:
    """The files that a config is composed of, in Hydra's order.

    Each file is read once, when it is first needed; Hydra may compose other configs until then.
    Hydra has no public way to list these files or to compose only some of them.

    Args:
        config_name: main config.
        overrides: as on the command line.
    """

    def __init__(self, config_name: str, overrides: Sequence[str]) -> None:
        self._config_name = config_name
        self._overrides = list(overrides)
        self._loader: Any = GlobalHydra.instance().config_loader()

    @cached_property
    def _read(self) -> tuple[list[ResultDefault], Any]:
        """The files, and the repository that has read them."""
        words, repo = self._loader._parse_overrides_and_create_caching_repo(
            self._config_name, self._overrides
        )
        found = create_defaults_list(
            repo=repo,
            config_name=self._config_name,
            overrides_list=words,
            prepend_hydra=True,
            skip_missing=False,
        )
        return found.defaults, repo

    def entries(self) -> list[Entry]:
        """Returns the options and files, without the main config and Hydra's own."""
        return [
            Entry(name=str(default.config_path), package=str(default.package))
            for default in self._read[0]
            if default.config_path and not default.config_path.startswith(("hydra/", "_dummy"))
            if default.config_path != self._config_name and default.package is not None
        ]

    def compose_without(self, left_out: Sequence[str]) -> DictConfig:
        """Composes the config without some files and without values from the command line.

        Args:
            left_out: names of the files, as in `Entry.name`.
        """
        defaults, repo = self._read
        kept = [default for default in defaults if default.config_path not in left_out]
        cfg: DictConfig = self._loader._compose_config_from_defaults_list(defaults=kept, repo=repo)
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra", None)
        return cfg
