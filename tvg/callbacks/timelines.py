"""Draws predicted and true segments after every validation."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tvg.plot.save import save_figure
from tvg.plot.timeline import TimelineRow, draw_timelines
from tvg.task.predictions import Prediction
from tvg.tracking.sinks import log_picture
from tvg.tracking.steady import reported_only


class Timelines(Callback):
    """Draws the first predictions of each validation, so that the queries are always the same.

    The predictions are read from `pl_module.val_predictions`, a list of Prediction that the module
    fills in its `validation_step`. Without that attribute, no picture is drawn. The picture is
    saved as `run_dir/pictures/val_timelines_step_<step>.png` and sent to MLflow and TensorBoard.

    Args:
        run_dir: folder of the run.
        num_queries: rows of the picture, at least 1; about 12 are readable.
    """

    def __init__(self, *, run_dir: str | Path, num_queries: int) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"timelines.num_queries must be at least 1: got {num_queries}")
        self.folder = Path(run_dir) / "pictures"
        self.num_queries = num_queries

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        made: list[Prediction] = getattr(pl_module, "val_predictions", None) or []
        predictions = [p for p in made if p.segment is not None or p.truth is not None]
        if trainer.sanity_checking or not trainer.is_global_zero or not predictions:
            return
        rows = [
            TimelineRow(query=p.query, duration_s=p.duration_s, predicted=p.segment, truth=p.truth)
            for p in predictions[: self.num_queries]
        ]
        step = trainer.global_step
        figure = draw_timelines(rows, title=f"Validation at step {step}")
        path = self.folder / f"val_timelines_step_{step:08d}.png"
        with reported_only(path):
            save_figure(figure, path)
            log_picture(trainer, path, tag="val/timelines", step=step)
