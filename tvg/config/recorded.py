"""What a checkpoint was trained with, kept beside its weights so that it is asked the same way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from tvg.config.build import build
from tvg.config.compose import compose_option
from tvg.config.errors import ConfigError
from tvg.task.grounding import GroundingTask, read_template_file

log = logging.getLogger(__name__)

RECORD_FILE = "tvg.yaml"
RECORDED_KEYS = {"prompt": "prompt", "data/loader": "data.loader"}  # group -> config key
AS_RECORDED = "recorded"


def record_text(cfg: DictConfig) -> str:
    """YAML of the prompt and the clip sampling of a run, for `RECORD_FILE` in its export."""
    nodes = {
        group: _settled(OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True))
        for group, key in RECORDED_KEYS.items()
    }
    return OmegaConf.to_yaml(OmegaConf.create(nodes))


def _settled(node: Any) -> Any:
    """A node without references to other checkpoints or files, which may move or change."""
    target = node.get("_target_")
    if target == f"{__name__}.{recorded.__name__}":
        return _settled(_plain(_recorded_node(node["folder"], node["key"], node["fallback"])))
    if target == f"{__name__}.{recorded_prompt.__name__}":
        found = _plain(_recorded_node(node["folder"], "prompt", node["fallback"]))
        changes = {k: v for k, v in node.items() if k not in ("_target_", "folder", "fallback")}
        return _settled({**found, **_changed(**changes)})
    if node.get("template_file") is not None:
        return {
            **node,
            "template": read_template_file(node["template_file"]),
            "template_file": None,
        }
    return node


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def _changed(**settings: Any) -> dict[str, Any]:
    """The settings that are not to be as recorded."""
    return {name: value for name, value in settings.items() if value != AS_RECORDED}


def recorded(*, folder: str | None, key: str, fallback: str) -> Any:
    """Builds what the checkpoint in `folder` was trained with.

    Args:
        folder: checkpoint folder; None where there is none yet.
        key: config group, "prompt" or "data/loader".
        fallback: option of that group for checkpoints that record nothing (any but our exports).

    Raises:
        ConfigError: there is no such folder or fallback, or the record lacks the key.
    """
    return build(_recorded_node(folder, key, fallback))


def recorded_prompt(
    *,
    folder: str | None,
    fallback: str,
    system: str | None,
    video_first: bool | Literal["recorded"],
    lowercase: bool | Literal["recorded"],
    strip_period: bool | Literal["recorded"],
    parser: Callable[..., Any] | Literal["recorded"],
    prefill: str | None,
    frame_times: str | None,
) -> GroundingTask:
    """Builds the prompt that the checkpoint in `folder` was trained with, or a variant of it.

    Args:
        folder: as for `recorded`.
        fallback: as for `recorded`.
        system: as for `GroundingTask`, or "recorded": as it was trained with; so are the others.
        video_first: see there.
        lowercase: see there.
        strip_period: see there.
        parser: see there.
        prefill: see there.
        frame_times: see there.

    Raises:
        ConfigError: as `recorded`.
    """
    changes = _changed(
        system=system,
        video_first=video_first,
        lowercase=lowercase,
        strip_period=strip_period,
        parser=parser,
        prefill=prefill,
        frame_times=frame_times,
    )
    task: GroundingTask = build(_recorded_node(folder, "prompt", fallback), **changes)
    return task


def _recorded_node(folder: str | None, key: str, fallback: str) -> Any:
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"model.path: no such folder: {folder}")
    path = Path(folder) / RECORD_FILE if folder is not None else None
    if path is None or not path.is_file():
        if folder is not None:
            log.warning("%s holds no %s: using %s=%s", folder, RECORD_FILE, key, fallback)
        return compose_option(key, fallback)
    record = OmegaConf.load(path)
    if key not in record:
        raise ConfigError(f"{path}: expected the key {key!r}, got {sorted(record)}")
    return OmegaConf.select(record, key)
