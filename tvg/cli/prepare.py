"""tvg-prepare: checks a dataset, video by video, and fills its cache before any training."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from tvg.config import CONF_DIR, check, entry_point


@entry_point
@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="prepare")
def main(cfg: DictConfig) -> None:
    """The console script."""
    check(cfg)
    from tvg.prepare import prepare

    prepare(cfg)


if __name__ == "__main__":
    main()
