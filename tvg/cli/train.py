"""tvg-train: one training run, or a job made of several (see the `job` key)."""

from __future__ import annotations

from typing import Any

import hydra
from omegaconf import DictConfig

from tvg.config import CONF_DIR, build, check, entry_point


@entry_point
@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def main(cfg: DictConfig) -> Any:
    """The console script."""
    check(cfg)
    if cfg.train.estimate:
        from tvg.estimate import show_estimate

        return show_estimate(cfg)
    return build(cfg.job)(cfg)


if __name__ == "__main__":
    main()
