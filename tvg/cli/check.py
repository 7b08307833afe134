"""tvg-check: inspects ranks, network, clocks, disks, versions and memory before a long training."""

from __future__ import annotations

from omegaconf import DictConfig

from tvg.config import entry_point


@entry_point("check")
def main(cfg: DictConfig) -> None:
    """Runs the command."""
    from tvg.jobs.check import check

    check(cfg)


if __name__ == "__main__":
    main()
