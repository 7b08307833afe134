"""tvg-predict: the moment of one sentence in one video file, with a picture of it."""

from __future__ import annotations

from omegaconf import DictConfig

from tvg.config import entry_point


@entry_point("predict", texts=("video", "query"))
def main(cfg: DictConfig) -> None:
    """The console script."""
    from tvg.predict import predict

    predict(cfg)


if __name__ == "__main__":
    main()
