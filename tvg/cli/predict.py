"""tvg-predict: the moment of one sentence in one video file, with a picture of it."""

from __future__ import annotations

from functools import partial

import hydra
from omegaconf import DictConfig

from tvg.config import CONF_DIR, check, entry_point


@partial(entry_point, texts=("video", "query"))
@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="predict")
def main(cfg: DictConfig) -> None:
    """The console script."""
    check(cfg)
    from tvg.predict import predict

    predict(cfg)


if __name__ == "__main__":
    main()
