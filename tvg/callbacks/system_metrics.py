"""Logs processor, memory, disk, network and GPU load to MLflow, sampled in a separate thread."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import MLFlowLogger

from tvg.tracking.mlflow_internals import start_system_monitor


class SystemMetrics(Callback):
    """Logs MLflow's `system/*` metrics during a fit; does nothing without an MLflow logger.

    Only the machine of rank zero is sampled.

    Args:
        interval_s: seconds between two samples, above 0.
    """

    def __init__(self, *, interval_s: float) -> None:
        super().__init__()
        if not interval_s > 0:
            raise ValueError(f"system_metrics.interval_s must be above 0: got {interval_s}")
        self.interval_s = interval_s
        self._monitors: list[Any] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if not isinstance(logger, MLFlowLogger) or logger.run_id is None:
                continue
            monitor = start_system_monitor(
                logger.run_id,
                tracking_uri=logger.experiment.tracking_uri,
                interval_s=self.interval_s,
            )
            self._monitors.append(monitor)

    def _stop(self) -> None:
        while self._monitors:
            self._monitors.pop().finish()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._stop()
