"""Reads values of a plain config in which keys may be absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
Rule = Callable[[Config], list[str]]


def value(cfg: Config, path: str, default: Any = None) -> Any:
    """Returns the value at a dotted path, or the default if a key on the way is absent."""
    node: Any = cfg
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return default
        node = node[key]
    return node


def number(cfg: Config, path: str) -> float | None:
    """Returns the number at a dotted path; None if it is absent or not a number."""
    found = value(cfg, path)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None
