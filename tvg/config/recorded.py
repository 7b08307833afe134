"""What a checkpoint was trained with, kept beside its weights so that it is asked the same way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tvg.config.build import build
from tvg.config.compose import CONF_DIR
from tvg.config.errors import ConfigError

log = logging.getLogger(__name__)

RECORD_FILE = "tvg.yaml"
RECORDED_KEYS = {"prompt": "prompt", "data/loader": "data.loader"}  # group -> config key


def record_text(cfg: DictConfig) -> str:
    """YAML of the prompt and the clip sampling of a run, for `RECORD_FILE` in its export."""
    nodes = {
        group: OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)
        for group, key in RECORDED_KEYS.items()
    }
    return OmegaConf.to_yaml(OmegaConf.create(nodes))


def recorded(*, folder: str | None, key: str, fallback: str) -> Any:
    """Builds what the checkpoint in `folder` was trained with.

    Args:
        folder: checkpoint folder; None where there is none yet.
        key: config group, "prompt" or "data/loader".
        fallback: option of that group for checkpoints that record nothing (any but our exports).

    Raises:
        ConfigError: the record lacks the key.
    """
    path = Path(folder) / RECORD_FILE if folder is not None else None
    if path is None or not path.is_file():
        if folder is not None:
            log.warning("%s holds no %s: using %s=%s", folder, RECORD_FILE, key, fallback)
        return build(OmegaConf.load(CONF_DIR / key / f"{fallback}.yaml"))
    record = OmegaConf.load(path)
    if key not in record:
        raise ConfigError(f"{path}: expected the key {key!r}, got {sorted(record)}")
    return build(OmegaConf.select(record, key))
