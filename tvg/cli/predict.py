"""tvg-predict: finds the moment that a sentence describes in a video file, and draws it."""

from __future__ import annotations

from omegaconf import DictConfig

from tvg.config import entry_point


@entry_point("predict", texts=("video", "query"))
def main(cfg: DictConfig) -> None:
    """Runs the command."""
    from tvg.jobs.predict import predict

    predict(cfg)


if __name__ == "__main__":
    main()
