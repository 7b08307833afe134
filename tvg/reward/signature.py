"""Which fields of the completions a reward asks for, read off its signature."""

from __future__ import annotations

import functools
import inspect
from inspect import Parameter

from tvg.reward.base import FIELDS, Reward


def wanted_fields(name: str, reward: Reward) -> frozenset[str]:
    """The keyword arguments to call `reward` with: all of them for one that takes `**rest`.

    Raises:
        ValueError: naming the reward, if it is no callable, needs an argument that there is not,
            or has one of its own settings fixed under a name that every call gives.
    """
    if not callable(reward):
        raise ValueError(f"reward {name!r} must be callable: got {type(reward).__name__}")
    fixed = sorted(reward.keywords.keys() & FIELDS) if isinstance(reward, functools.partial) else []
    if fixed:
        raise ValueError(
            f"reward {name!r}: {fixed[0]!r} is given by every call and cannot be fixed: "
            "rename the setting"
        )
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError) as error:  # some builtins tell none
        raise ValueError(f"reward {name!r}: its signature cannot be read: {error}") from error
    for parameter in parameters:
        _check(name, parameter)
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return FIELDS
    return FIELDS & {p.name for p in parameters}


def _check(name: str, parameter: Parameter) -> None:
    if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        return
    is_by_position = parameter.kind is Parameter.POSITIONAL_ONLY
    is_required = parameter.default is Parameter.empty
    if is_required and (is_by_position or parameter.name not in FIELDS):
        how = " by position" if is_by_position else ""
        raise ValueError(
            f"reward {name!r} needs the argument {parameter.name!r}{how}, which no call gives: "
            f"there is, by keyword, {', '.join(sorted(FIELDS))}; settings of its own belong into "
            "its YAML (with _partial_: true where it is a function)"
        )
