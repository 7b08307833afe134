"""tvg-train: runs a training, or a job of several runs such as the demo (see the `job` key)."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from tvg.config import build, entry_point


@entry_point("train")
def main(cfg: DictConfig) -> Any:
    """Runs the command."""
    if cfg.train.estimate:
        from tvg.estimate.from_config import show_estimate

        return show_estimate(cfg)
    return build(cfg.job)(cfg)


if __name__ == "__main__":
    main()
