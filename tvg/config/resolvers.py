"""Defines the resolvers that config files can use in addition to Hydra's own."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf

from tvg.config.errors import ConfigError
from tvg.config.identity import identity_of
from tvg.core.launched import name_of_launch, started_processes

_RUN_NAME = "TVG_RUN_NAME"
_NO_PART_OF_A_JOB = ("resume=", "name=", "run_dir=", "hydra.")
_READABLE = 200  # characters of the overrides in a job's folder name; file systems allow 255
_READABLE_VALUE = 40  # the last characters of a longer value, such as a path
_attempts = [1]  # numbers tried for a run name that no other run has


def register_resolvers() -> None:
    """Registers the resolvers of this module, such as `${run_name:}`; may be called repeatedly."""
    for resolver in _RESOLVERS:
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def run_name(*, _root_: DictConfig) -> str:
    """Returns the date and time at which this run began, the same on all of its ranks.

    Lightning starts the other ranks of a node by running the command again, seconds later. These
    processes have a LOCAL_RANK and inherit the name of the process that started them. The ranks of
    torchrun and srun use the id of their launch, such as `slurm_4711_0`.

    Raises:
        ConfigError: several processes were started without such an id. Each would read its own
            clock.
    """
    inherited = os.environ.get(_RUN_NAME)
    if inherited and "LOCAL_RANK" in os.environ:
        return inherited
    if started := _started_by_others(_root_):
        if (name := name_of_launch()) is not None:
            return name
        raise ConfigError(
            f"name: a value is needed (name=...): {started} starts several processes, whose names "
            "from the clock would differ; torchrun also accepts --rdzv-id=NAME, or --standalone "
            "on one node"
        )
    return _new_run_name(_attempts[-1])


def _started_by_others(cfg: DictConfig) -> str:
    """Returns the setting that shows that several processes were started; empty if none does."""
    if started := started_processes():
        return started
    num_nodes = OmegaConf.select(cfg, "trainer.num_nodes", default=1)
    if "NODE_RANK" in os.environ and isinstance(num_nodes, int) and num_nodes > 1:
        return f"trainer.num_nodes={num_nodes}"
    return ""


def next_run_name() -> None:
    """Changes the name of this run to one that ends in `_2`, `_3` and so on."""
    _attempts.append(_attempts[-1] + 1)


@functools.cache
def _new_run_name(attempt: int = 1) -> str:
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}" + (f"_{attempt}" if attempt > 1 else "")
    os.environ[_RUN_NAME] = name
    return name


def identity(command: str, *, _root_: DictConfig) -> str:
    """Returns the ten-digit hash of all that decides a job's result, for its default folder."""
    return identity_of(command, _root_).digest


def job_folder(overrides: ListConfig) -> str:
    """Returns the folder name of a sweep's job: its shortened overrides and a hash of all of them.

    The same job has the same folder in every sweep, regardless of its number.
    """
    words = [str(word) for word in overrides if not str(word).startswith(_NO_PART_OF_A_JOB)]
    readable = "_".join(_readable(word) for word in words)[:_READABLE].strip("-._")
    return f"{readable}_{short_hash(sorted(words))}" if readable else short_hash(sorted(words))


def _readable(word: str) -> str:
    """Shortens an override to the last two parts of its key and the last part of its value.

    For example, reward.iou.weight=2 gives iou.weight-2, and model.path=a/b gives model.path-b.
    """
    key, _, value = word.partition("=")
    name = value.rstrip("/").rpartition("/")[2] if value.count("/") else value
    short = ".".join(key.split(".")[-2:])
    return re.sub(r"[^\w.-]+", "-", f"{short}-{name[-_READABLE_VALUE:]}")


def short_hash(*values: Any) -> str:
    """Returns an eight-digit hash of the values, for names of files and folders."""
    plain = [
        OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
        for value in values
    ]
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def basename(path: str) -> str:
    """Returns the last part of a path, such as the name of a run from its folder."""
    return Path(path).name


def module_doc(name: str) -> str:
    """Returns the docstring of the entry point `tvg.cli.name`, for its --help."""
    module = sys.modules.get(f"tvg.cli.{name}", sys.modules["__main__"])
    return inspect.cleandoc(module.__doc__ or "")


def resolved_config(*, _root_: DictConfig) -> str:
    """Returns the complete resolved config as YAML; keys with this resolver become null."""
    plain = _without(OmegaConf.to_container(_root_, resolve=False), "${resolved_config:}")
    return OmegaConf.to_yaml(OmegaConf.create(plain), resolve=True)


def _without(value: Any, unwanted: str) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, unwanted) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, unwanted) for item in value]
    return None if value == unwanted else value


def by_compat(ours: Any, time_r1: Any, *, _root_: DictConfig) -> Any:
    """Returns the second value with compat=time_r1, otherwise the first."""
    return time_r1 if OmegaConf.select(_root_, "compat") == "time_r1" else ours


def mul(*factors: float) -> float:
    """Returns the product of numbers; an integer if all are integers."""
    product: float = 1
    for factor in factors:
        product *= factor
    return product


_RESOLVERS = (
    basename,
    by_compat,
    identity,
    job_folder,
    module_doc,
    mul,
    resolved_config,
    run_name,
    short_hash,
)
