"""Checks a composed config and reports all its problems in one error."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tvg.config.compose import Composition, current_composition
from tvg.config.errors import ConfigError, did_you_mean
from tvg.config.nodes import (
    at,
    has_target,
    has_target_within,
    is_interpolation,
    missing,
    plain,
    raw,
    referenced,
    unresolvable,
)
from tvg.config.rules import IMPORTING_RULES, RULES
from tvg.config.targets import target_problems

# Groups whose options are placed under their own name: logger.mlflow, reward.iou.
COLLECTIONS = ("callbacks", "logger", "reward")


def check(cfg: DictConfig | Composition) -> None:
    """Raises an error if a config cannot work. Called before anything is loaded.

    Args:
        cfg: the config of the running @hydra.main function, or what `compose` returns.

    Raises:
        ConfigError: the config has problems; the message has one line for each of them.
    """
    composition = cfg if isinstance(cfg, Composition) else current_composition(cfg)
    problems = find_problems(composition)
    if problems:
        raise ConfigError(*problems)


def find_problems(composition: Composition) -> list[str]:
    """Returns one line for every problem of a composed config.

    Targets are imported only if there are no other problems, because importing may take many
    seconds.
    """
    cfg = composition.cfg
    values, unresolved = plain(cfg), raw(cfg)
    problems = (
        unknown_keys(composition)
        + [f"{path}: a value is needed ({path}=...)" for path in missing(unresolved)]
        + entries_without_target(composition)
        + unresolvable(cfg)
        + [problem for rule in RULES for problem in rule(values)]
    )
    if not problems:
        problems = target_problems(cfg) + [p for rule in IMPORTING_RULES for p in rule(values)]
    return list(dict.fromkeys(problems))


def unknown_keys(composition: Composition) -> list[str]:
    """Reports keys of experiment files that nothing reads, such as misspelt ones.

    Arguments of a `_target_` are checked elsewhere, against its signature. These keys are allowed:

    - complete new components, and components set to null;
    - keys that an interpolation refers to;
    - keys that the user added with a plus.
    """
    unresolved = raw(composition.cfg)
    asked_for = referenced(unresolved) | set(composition.added)
    whence = " and ".join(composition.overlays) or "the config"
    problems: list[str] = []

    def is_wanted(path: str, value: Any) -> bool:
        if any(path == name or path.startswith(f"{name}.") for name in asked_for):
            return True
        inner = value if isinstance(value, dict) else {}
        return bool(inner) and all(is_wanted(f"{path}.{key}", inner[key]) for key in inner)

    def compare(node: dict[Any, Any], known: dict[Any, Any], prefix: str) -> None:
        for key, value in node.items():
            path = f"{prefix}{key}"
            if key in known:
                if not isinstance(known[key], dict):
                    continue
                if isinstance(value, dict):
                    compare(value, known[key], path + ".")
                elif value not in (None, "???") and not is_interpolation(value):
                    problems.append(_section_overwritten(path, value, whence))
            elif not (has_target(node) or has_target_within(value) or is_wanted(path, value)):
                hint = did_you_mean(str(key), map(str, known))
                problems.append(f"{path}: unknown key in {whence}{hint}")

    compare(unresolved, raw(composition.known), "")
    return problems


def _section_overwritten(path: str, value: Any, whence: str) -> str:
    return (
        f"{path}: {whence} sets {value!r} where a section is expected; choose an option in its "
        f"defaults list: - override /{path.replace('.', '/')}: {value}"
    )


def entries_without_target(composition: Composition) -> list[str]:
    """Reports chosen options and entries of collections that have no `_target_`."""
    values = raw(composition.cfg)
    problems = []
    for entry in composition.entries:
        group = entry.name.partition("/")[0]
        if group in COLLECTIONS or "/" not in entry.name:
            continue
        if entry.package == "experiment":
            problems.append(f"{entry.name}: its first line must be '# @package _global_'")
        elif not has_target_within(at(values, entry.package)):
            problems.append(f"{entry.package}: the option {entry.name} has no _target_")
    for group in COLLECTIONS:
        node = values.get(group)
        for name, child in node.items() if isinstance(node, dict) else ():
            if is_interpolation(child):
                child = _resolved(composition.cfg, f"{group}.{name}")
            if child is not None and not has_target_within(child):
                problems.append(f"{group}.{name}: an entry needs a _target_")
    return problems


def _resolved(cfg: DictConfig, path: str) -> Any:
    """Returns the value of an interpolation; None if it cannot be resolved (reported elsewhere)."""
    try:
        found = OmegaConf.select(cfg, path)
    except OmegaConfBaseException:
        return None
    return raw(found) if OmegaConf.is_config(found) else found
