"""tvg-prepare: checks a dataset, video by video, and fills its cache before any training."""

from __future__ import annotations

from omegaconf import DictConfig

from tvg.config import entry_point


@entry_point("prepare")
def main(cfg: DictConfig) -> None:
    """The console script."""
    from tvg.jobs.prepare import prepare

    prepare(cfg)


if __name__ == "__main__":
    main()
