"""Composes configs with Hydra, checks them, and builds the objects that they describe."""

from tvg.config.build import build
from tvg.config.check import check
from tvg.config.compose import CONF_DIR, compose
from tvg.config.entry import entry_point
from tvg.config.errors import ConfigError
from tvg.config.resolvers import register_resolvers

__all__ = [
    "CONF_DIR",
    "ConfigError",
    "build",
    "check",
    "compose",
    "entry_point",
    "register_resolvers",
]
