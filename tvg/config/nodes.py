"""Functions that walk through a config without resolving it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

_REFERENCE = re.compile(r"\$\{\s*(\.*)([A-Za-z_][\w.]*)\s*\}")


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Container, Any]]:
    """Yields (path, parent, key) of every value below a node, parents first."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
        return
    if node._is_interpolation():
        return
    keys: Any = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        inner = f"{path}.{key}" if path else str(key)
        yield inner, node, key
        yield from walk(node._get_node(key), inner)


def parent_of(path: str) -> str:
    """Returns the parent of a path: `a.b` for `a.b.c`."""
    return path.rpartition(".")[0]


def at(cfg: DictConfig, path: str) -> Any:
    """Returns the node at a path, unresolved; None if there is none."""
    node: Any = cfg
    for key in path.split(".") if path else []:
        if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
            return None
        if isinstance(node, ListConfig):
            node = node._get_node(int(key)) if key.isdigit() and int(key) < len(node) else None
        else:
            node = node._get_node(key, validate_access=False)
    return node


def raw(node: Any) -> Any:
    """Returns the unresolved value of a node; returns anything else as it is."""
    return node._value() if isinstance(node, Node) else node


def raw_at(parent: Any, key: Any) -> Any:
    """Returns the unresolved value of a key in a section."""
    return raw(parent._get_node(key))


def full_key(node: Any) -> str:
    """Dotted path of a node in its config; empty for the root."""
    return str(node._get_full_key(None))


def is_section(node: Any) -> bool:
    """True if the node is a mapping with its own contents: not null, `???` or `${...}`."""
    return isinstance(node, DictConfig) and not (
        node._is_none() or node._is_missing() or node._is_interpolation()
    )


def is_null(node: Any) -> bool:
    """True if the node is null."""
    return isinstance(node, Node) and node._is_none()


def has_target(node: Any) -> bool:
    """True if the node itself describes an object."""
    return is_section(node) and "_target_" in list(node)  # `in node` is False for ???


def has_target_within(node: Any) -> bool:
    """True if the node or one below it describes an object; interpolations count, as they may."""
    if isinstance(node, DictConfig | ListConfig) and node._is_interpolation():
        return True
    return has_target(node) or any(key == "_target_" for _, _, key in walk(node))


def referenced(cfg: DictConfig) -> set[str]:
    """Paths that interpolations of the config refer to."""
    found = set()
    for path, parent, key in walk(cfg):
        value = raw_at(parent, key)
        for dots, name in _REFERENCE.findall(value) if isinstance(value, str) else ():
            base = path
            for _ in dots:
                base = parent_of(base)
            found.add(f"{base}.{name}" if dots and base else name)
    return found


def missing(cfg: DictConfig) -> list[str]:
    """Paths of the values that are `???`."""
    nodes = [(path, parent._get_node(key)) for path, parent, key in walk(cfg)]
    return [path for path, node in nodes if isinstance(node, Node) and node._is_missing()]


def unresolvable(cfg: DictConfig) -> list[str]:
    """One line for every interpolation that has no value, except those to a missing value."""
    problems = []
    for path, parent, key in walk(cfg):
        if not OmegaConf.is_interpolation(parent, key):
            continue
        try:
            parent[key]
        except (InterpolationToMissingValueError, MissingMandatoryValue):
            continue  # reported at the missing value
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{path}: {raw_at(parent, key)} cannot be resolved ({reason})")
    return problems


def plain(node: Any) -> Any:
    """Converts a config to dicts and lists, without values that are missing or unresolvable."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    if node._is_none() or node._is_missing():
        return None
    keys: Any = range(len(node)) if isinstance(node, ListConfig) else list(node)
    values = {}
    for key in keys:
        try:
            values[key] = plain(node[key])
        except OmegaConfBaseException:
            continue
    return values if isinstance(node, DictConfig) else list(values.values())
