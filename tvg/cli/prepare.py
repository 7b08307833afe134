"""tvg-prepare: checks all videos of a data set and fills its cache before training."""

from __future__ import annotations

from omegaconf import DictConfig

from tvg.config import entry_point


@entry_point("prepare")
def main(cfg: DictConfig) -> None:
    """Runs the command."""
    from tvg.jobs.prepare import prepare

    prepare(cfg)


if __name__ == "__main__":
    main()
