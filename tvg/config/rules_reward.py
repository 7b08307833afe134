"""Rules for rewards that could not be called, before weights are loaded; see `rules`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from tvg.config.targets import locate
from tvg.config.values import Config, value
from tvg.core.reward_names import reward_name_problems


def reward_cannot_be_named(cfg: Config) -> list[str]:
    """Names of rewards become names of metrics, so they must be valid and not taken."""
    rewards = value(cfg, "reward")
    return reward_name_problems(map(str, rewards)) if isinstance(rewards, Mapping) else []


def reward_cannot_be_called(cfg: Config) -> list[str]:
    """A reward's signature may name only the fields that exist; imports the rewards."""
    problems = []
    for name, entry in (value(cfg, "reward") or {}).items():
        node = value(entry, "reward") if isinstance(entry, Mapping) else None
        if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
            problems += _problems(f"reward.{name}.reward", str(name), node)
    return problems


def _problems(path: str, name: str, node: Mapping[str, Any]) -> list[str]:
    try:
        target = locate(node["_target_"])
    except Exception:  # importing runs third-party code; reported by the check of targets
        return []
    if inspect.isclass(target):
        return [] if node.get("_partial_") else _problems_of_class(path, name, target)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []
    if node.get("_partial_"):
        settings = {key: item for key, item in node.items() if key in parameters}
        return _uncallable(path, name, functools.partial(target, **settings))
    from tvg.reward.base import FIELDS  # imports torch

    if parameters.keys() & FIELDS:
        return [f"{path}: {node['_target_']} is a function: it needs _partial_: true beside it"]
    return []


def _problems_of_class(path: str, name: str, target: type) -> list[str]:
    calls = [vars(base)["__call__"] for base in target.__mro__ if "__call__" in vars(base)]
    if not calls:
        return [f"{path}: reward {name!r} must be callable: {target.__name__} has no __call__"]
    return _uncallable(path, name, functools.partial(calls[0], None))  # binds self


def _uncallable(path: str, name: str, reward: Any) -> list[str]:
    from tvg.reward.signature import wanted_fields  # imports torch

    try:
        wanted_fields(name, reward)
    except ValueError as error:
        return [f"{path}: {error}"]
    return []
