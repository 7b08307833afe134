"""What a checkpoint was trained with, kept beside its weights so that it is asked the same way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tvg.config.build import build
from tvg.config.compose import CONF_DIR
from tvg.config.errors import ConfigError
from tvg.task.grounding import read_template_file

log = logging.getLogger(__name__)

RECORD_FILE = "tvg.yaml"
RECORDED_KEYS = {"prompt": "prompt", "data/loader": "data.loader"}  # group -> config key


def record_text(cfg: DictConfig) -> str:
    """YAML of the prompt and the clip sampling of a run, for `RECORD_FILE` in its export."""
    nodes = {
        group: _settled(OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True))
        for group, key in RECORDED_KEYS.items()
    }
    return OmegaConf.to_yaml(OmegaConf.create(nodes))


def _settled(node: Any) -> Any:
    """A node without references to other checkpoints or files, which may move or change."""
    if node.get("_target_") == f"{__name__}.{recorded.__name__}":
        found = _recorded_node(node["folder"], node["key"], node["fallback"])
        return _settled(OmegaConf.to_container(found, resolve=True))
    if node.get("template_file") is not None:
        return {
            **node,
            "template": read_template_file(node["template_file"]),
            "template_file": None,
        }
    return node


def recorded(*, folder: str | None, key: str, fallback: str) -> Any:
    """Builds what the checkpoint in `folder` was trained with.

    Args:
        folder: checkpoint folder; None where there is none yet.
        key: config group, "prompt" or "data/loader".
        fallback: option of that group for checkpoints that record nothing (any but our exports).

    Raises:
        ConfigError: there is no such folder, or the record lacks the key.
    """
    return build(_recorded_node(folder, key, fallback))


def _recorded_node(folder: str | None, key: str, fallback: str) -> Any:
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"model.path: no such folder: {folder}")
    path = Path(folder) / RECORD_FILE if folder is not None else None
    if path is None or not path.is_file():
        if folder is not None:
            log.warning("%s holds no %s: using %s=%s", folder, RECORD_FILE, key, fallback)
        return OmegaConf.load(CONF_DIR / key / f"{fallback}.yaml")
    record = OmegaConf.load(path)
    if key not in record:
        raise ConfigError(f"{path}: expected the key {key!r}, got {sorted(record)}")
    return OmegaConf.select(record, key)
