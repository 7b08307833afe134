"""Sends tables, texts, files and pictures to the trainer's loggers that support them.

The functions do nothing if there is no such logger, or on ranks other than zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

from tvg.tracking.steady import reported_only


def mlflow_runs(trainer: pl.Trainer) -> Iterator[tuple[Any, str]]:
    """Yields the (MlflowClient, run ID) of every MLflow logger."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, MLFlowLogger) and logger.run_id is not None:
            yield logger.experiment, logger.run_id


def on_tensorboard(trainer: pl.Trainer, write: Callable[[Any], None]) -> None:
    """Calls `write` with each TensorBoard SummaryWriter; a full disk only causes a warning."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            with reported_only(logger.log_dir):
                write(logger.experiment)


def log_file(trainer: pl.Trainer, path: Path, *, folder: str | None = None) -> None:
    """Copies a file to MLflow's artifacts, into `folder` there; an older copy is replaced."""
    for client, run_id in mlflow_runs(trainer):
        client.log_artifact(run_id, str(path), folder)


def log_picture(trainer: pl.Trainer, path: Path, *, tag: str, step: int) -> None:
    """Shows a picture file in MLflow (artifact folder `pictures`) and in TensorBoard."""
    log_file(trainer, path, folder="pictures")

    def show(writer: Any) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        writer.add_image(tag, pixels, global_step=step, dataformats="HWC")

    on_tensorboard(trainer, show)


def log_table(trainer: pl.Trainer, columns: dict[str, list[Any]], *, name: str, step: int) -> None:
    """Shows a table: MLflow artifact `<name>/step_<step>.json`, TensorBoard text `<name>`.

    There is one file per step, because MLflow re-reads and rewrites a file to append to it. A step
    that is logged again after a resume replaces its table.

    Args:
        trainer: trainer whose loggers are written to.
        columns: column -> values, all of equal length.
        name: name of the table.
        step: optimizer steps done.
    """
    for client, run_id in mlflow_runs(trainer):
        client.log_table(run_id, columns, f"{name}/step_{step:08d}.json")
    text = markdown_table(columns)
    on_tensorboard(trainer, lambda writer: writer.add_text(name, text, global_step=step))


def markdown_table(columns: dict[str, list[Any]]) -> str:
    """Formats a table as Markdown, with one line per row even if cells contain line breaks."""

    def line(cells: list[Any]) -> str:
        texts = (f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells)
        kept = (" ".join(text.split()) for text in texts)
        # Escaped, because a dashboard would interpret the tags in completions as HTML.
        safe = (t.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|") for t in kept)
        return f"| {' | '.join(safe)} |"

    rows = zip(*columns.values(), strict=True)
    head = [line(list(columns)), line(["---"] * len(columns))]
    return "\n".join(head + [line(list(row)) for row in rows])
