"""tvg-evaluate: computes predictions and metrics of a checkpoint on one split of a data set."""

from __future__ import annotations

from omegaconf import DictConfig

from tvg.config import entry_point


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Runs the command."""
    from tvg.jobs.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
