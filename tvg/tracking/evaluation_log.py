"""Logs evaluation results to the configured loggers, without a trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger

from tvg.tracking.run_status import ending_runs


def log_evaluation(
    loggers: Sequence[Logger],
    metrics: Mapping[str, Any],
    *,
    files: Sequence[Path],
    prefix: str,
    folder: str = "evaluation",
) -> None:
    """Logs all numbers of `metrics` as `<prefix>/<name>`, and the files as MLflow artifacts."""
    numbers = {
        f"{prefix}/{name}": float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    with ending_runs(loggers):
        for logger in loggers:
            logger.log_metrics(numbers, step=0)
            if isinstance(logger, MLFlowLogger):
                for file in files:
                    logger.experiment.log_artifact(logger.run_id, str(file), folder)
            logger.finalize("success")
