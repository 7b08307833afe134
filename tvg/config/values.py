"""Reading a plain config without minding what is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
Rule = Callable[[Config], list[str]]


def value(cfg: Config, path: str, default: Any = None) -> Any:
    """The value at a dotted path, or the default where a key on the way is absent."""
    node: Any = cfg
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return default
        node = node[key]
    return node


def number(cfg: Config, path: str) -> float | None:
    """The number at a dotted path; None where there is none, or something else."""
    found = value(cfg, path)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None
