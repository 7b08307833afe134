"""Checks the arguments of nodes with a `_target_` against the target's signature."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

from omegaconf import DictConfig

from tvg.config.errors import did_you_mean
from tvg.config.nodes import at, has_target, is_interpolation, parent_of, raw, walk

_TEXT_KINDS = {"str", "Path", "os.PathLike[str]", "None"}
_HYDRA_KEYS = {"_target_", "_convert_", "_recursive_", "_partial_", "_args_"}


def target_problems(cfg: DictConfig) -> list[str]:
    """Reports targets that cannot be imported, unknown arguments and missing arguments."""
    problems = []
    values = raw(cfg)
    for path, node in walk(values):
        if not has_target(node):
            continue
        target = node["_target_"]
        if not isinstance(target, str) or is_interpolation(target) or target == "???":
            continue  # reported elsewhere as missing or unresolvable
        try:
            function = locate(target)
        except Exception as error:
            # Importing runs third-party code, which may raise any error.
            problems.append(f"{path}._target_: cannot import {target} ({_last_line(error)})")
            continue
        if not callable(function):
            problems.append(f"{path}._target_: {target} is not callable")
            continue
        nested = has_target(at(values, parent_of(path))) if "." in path else False
        problems += _argument_problems(path, node, function, nothing_added=nested)
    return problems


def _argument_problems(
    path: str, node: dict[str, Any], function: Callable[..., Any], *, nothing_added: bool
) -> list[str]:
    """Reports wrong arguments; `nothing_added`: all arguments come from the config."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return []  # some builtins have none
    name = getattr(function, "__qualname__", str(function))
    given = {str(key) for key in node} - _HYDRA_KEYS
    named = {
        p.name
        for p in parameters.values()
        if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    }
    problems = []
    if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        problems = [
            f"{path}.{key}: {name} has no argument {key!r}"
            + (did_you_mean(key, named) or f"; its arguments are {', '.join(sorted(named))}")
            for key in sorted(given - named)
        ]
    problems += _numbers_for_text(path, node, parameters)
    partial = bool(node.get("_partial_")) or "_args_" in node
    if nothing_added and not partial and not problems:
        required = {p.name for p in parameters.values() if p.default is Parameter.empty} & named
        problems += [
            f"{path}.{key}: {name} needs this argument" for key in sorted(required - given)
        ]
    return problems


def _numbers_for_text(
    path: str, node: dict[str, Any], parameters: Mapping[str, Parameter]
) -> list[str]:
    """Reports numbers (e.g. a folder 2024) for arguments of tvg that accept only text."""
    problems = []
    for name, parameter in parameters.items():
        if name not in node or not isinstance(
            parameter.annotation, str
        ):  # annotations in tvg are strings
            continue
        kinds = {kind.strip() for kind in parameter.annotation.split("|")}
        value = node[name]
        if kinds - {"None"} and kinds <= _TEXT_KINDS and type(value) in (int, float, bool):
            key = f"{path}.{name}"
            problems.append(f"{key}: expected text, got {value}: quote it ({key}='\"{value}\"')")
    return problems


def locate(target: str) -> Any:
    """Returns the object at a dotted path, after importing its modules.

    Raises:
        ImportError: a module is missing or cannot be imported, or has no such attribute.
    """
    first, *rest = target.split(".")
    found, name = importlib.import_module(first), first
    for part in rest:
        name = f"{name}.{part}"
        if not hasattr(found, part):
            if not inspect.ismodule(found):
                raise ImportError(f"{found.__name__} has no attribute {part!r}")
            try:
                found = importlib.import_module(name)
                continue
            except ModuleNotFoundError as error:
                if error.name != name:  # the module exists, but something that it imports does not
                    raise
                hint = did_you_mean(part, dir(found))
                raise ImportError(f"{found.__name__} has no {part!r}{hint}") from error
        found = getattr(found, part)
    return found


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
