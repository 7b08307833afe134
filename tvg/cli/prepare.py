"""tvg-prepare: checks all videos of a data set and fills its cache before training."""

from __future__ import annotations

from omegaconf import DictConfig

from tvg.config import entry_point
from tvg.core.launched import is_first_of_node


@entry_point("prepare")
def main(cfg: DictConfig) -> None:
    """Runs the command, in one process of each node."""
    if not is_first_of_node():
        return
    from tvg.jobs.prepare import prepare

    prepare(cfg)


if __name__ == "__main__":
    main()
