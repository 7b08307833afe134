"""Walks through configs, mostly without resolving interpolations.

Unresolved values are dicts for sections, lists for lists, and texts for interpolations (`${...}`)
and missing values (`???`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

_REFERENCE = re.compile(r"\$\{\s*(\.*)([A-Za-z_][\w.]*)\s*\}")


def raw(cfg: Container) -> Any:
    """Returns the unresolved values of a config as dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=False)


def walk(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of everything below a section or list, parents first."""
    if isinstance(values, dict | list):
        items: Any = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            inner = f"{path}.{key}" if path else str(key)
            yield inner, value
            yield from walk(value, inner)


def interpolations(cfg: Container) -> Iterator[tuple[str, Any, Any, str]]:
    """Yields (path, parent node, key, text) of every value that is an interpolation."""
    yield from _interpolations(cfg, raw(cfg), "")


def _interpolations(node: Any, values: Any, path: str) -> Iterator[tuple[str, Any, Any, str]]:
    items: Any = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict | list):
            yield from _interpolations(node[key], value, inner)
        elif isinstance(value, str) and OmegaConf.is_interpolation(node, key):
            yield inner, node, key, value


def parent_of(path: str) -> str:
    """Returns the parent of a path: `a.b` for `a.b.c`."""
    return path.rpartition(".")[0]


def at(values: Any, path: str) -> Any:
    """Returns the unresolved value at a path; None if there is none."""
    for key in path.split(".") if path else []:
        if isinstance(values, dict):
            values = values.get(key)
        elif isinstance(values, list) and key.isdigit() and int(key) < len(values):
            values = values[int(key)]
        else:
            return None
    return values


def has_target(value: Any) -> bool:
    """Returns whether an unresolved value is a section with a `_target_`."""
    return isinstance(value, dict) and "_target_" in value


def has_target_within(value: Any) -> bool:
    """Returns whether an unresolved value, or a value below it, has a `_target_`."""
    return has_target(value) or any(has_target(inner) for _, inner in walk(value))


def is_interpolation(value: Any) -> bool:
    """Returns whether an unresolved value is an interpolation, which may refer to a section."""
    return isinstance(value, str) and "${" in value


def referenced(values: Any) -> set[str]:
    """Returns the paths that the interpolations in unresolved values refer to."""
    found = set()
    for path, value in walk(values):
        for dots, name in _REFERENCE.findall(value) if isinstance(value, str) else ():
            base = path
            for _ in dots:
                base = parent_of(base)
            found.add(f"{base}.{name}" if dots and base else name)
    return found


def missing(values: Any) -> list[str]:
    """Returns the paths of all values that are `???`."""
    return [path for path, value in walk(values) if value == "???"]


def unresolvable(cfg: DictConfig) -> list[str]:
    """Returns one line for every interpolation that fails, unless it refers to a missing value."""
    problems = []
    for path, parent, key, text in interpolations(cfg):
        try:
            parent[key]
        except (InterpolationToMissingValueError, MissingMandatoryValue):
            continue  # the missing value itself is reported
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{path}: {text} cannot be resolved ({reason})")
    return problems


def plain(node: Any) -> Any:
    """Converts a config to dicts and lists; leaves out missing and unresolvable values."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    keys: Any = range(len(node)) if isinstance(node, ListConfig) else list(node)
    values = {}
    for key in keys:
        try:
            values[key] = plain(node[key])
        except OmegaConfBaseException:
            continue
    return values if isinstance(node, DictConfig) else list(values.values())
