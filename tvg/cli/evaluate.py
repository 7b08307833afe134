"""tvg-evaluate: predictions and metrics of a checkpoint on one split of a dataset."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from tvg.config import CONF_DIR, check, entry_point


@entry_point
@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """The console script."""
    check(cfg)
    from tvg.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
