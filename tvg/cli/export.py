"""tvg-export: writes a Hugging Face folder from any checkpoint of a training run."""

from __future__ import annotations

from omegaconf import DictConfig

from tvg.config import entry_point


@entry_point("export", texts=("run_dir", "folder", "model_path"))
def main(cfg: DictConfig) -> None:
    """Runs the command."""
    from tvg.jobs.export import export

    export(cfg)


if __name__ == "__main__":
    main()
