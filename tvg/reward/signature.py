"""Finds the fields of `Completions` that a reward's signature requests."""

from __future__ import annotations

import functools
import inspect
from inspect import Parameter

from tvg.reward.base import FIELDS, Reward


def wanted_fields(name: str, reward: Reward) -> frozenset[str]:
    """Returns the names of a reward's keyword arguments: all fields if it accepts `**rest`.

    Raises:
        ValueError: the reward is not callable, requires an argument that does not exist, or is a
            partial that fixes the name of a field; the message names the reward.
    """
    if not callable(reward):
        raise ValueError(f"reward {name!r} must be callable: got {type(reward).__name__}")
    fixed = sorted(reward.keywords.keys() & FIELDS) if isinstance(reward, functools.partial) else []
    if fixed:
        raise ValueError(
            f"reward {name!r}: {fixed[0]!r} is an input of every reward and cannot be fixed: "
            "rename the setting"
        )
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError) as error:  # some builtins have no signature
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
            f"reward {name!r} needs the argument {parameter.name!r}{how}, which does not exist: "
            f"rewards can request, by keyword, {', '.join(sorted(FIELDS))}; set any other argument "
            "in the reward's YAML (with _partial_: true if the reward is a function)"
        )
