"""A resumed run first does what a kill took from the step that its checkpoint was saved in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tvg.callbacks.sinks import logging_step
from tvg.callbacks.steady import reported_only
from tvg.task.report import write_json
from tvg.training.base import PolicyModule
from tvg.training.lightning_internals import (
    forget_half_validation,
    step_metrics,
    validate_now,
    validation_is_due,
)
from tvg.training.trained_state import fingerprint

FILE_NAME = "validation.json"
_KEY = "missed"  # of the checkpoint


class ValidationRecord(Callback):
    """Keeps the metrics of the last validation in `run_dir/validation.json`.

    The file says which weights were validated at which step; it is written once the loggers have
    the metrics, NaN and infinity as null, which JSON has no numbers for. To be the last callback
    but those that save checkpoints.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, *, run_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(run_dir) / FILE_NAME

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        names = (name for name in trainer.callback_metrics if name.startswith("val/"))
        values = {name: float(trainer.callback_metrics[name]) for name in names}
        metrics = {name: v if math.isfinite(v) else None for name, v in values.items()}
        record = {**_place(trainer, pl_module), "metrics": metrics}
        with reported_only(self.path):  # without it, a resumed run validates again
            write_json(self.path, record)

    def metrics(self) -> dict[str, float]:
        """Of the last validation, NaN where a value was not finite; empty where there was none."""
        found = self._read().get("metrics", {})
        return {str(name): math.nan if v is None else float(v) for name, v in found.items()}

    def is_of(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether the last validation was that of the weights as they are, at this step."""
        found = self._read()
        return all(found.get(name) == now for name, now in _place(trainer, pl_module).items())

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class CatchingUp(Callback):
    """Logs and validates, in a resumed run, what the run before did not come to.

    A checkpoint is saved when a step's weights have changed, which is before Lightning hands the
    step's metrics to the loggers and before the validation that follows. The metrics are kept in
    the checkpoint and logged again on resume: the same values at the same step. The validation is
    done by the resumed run, before anything else, unless `record` has it. To be the first callback.

    Args:
        record: of the validations of this run.
    """

    def __init__(self, *, record: ValidationRecord) -> None:
        super().__init__()
        self.record = record
        self._is_unlogged = False  # a step ends just now
        self._is_validating = False
        self._missed: dict[str, Any] = {}  # as found in the checkpoint

    # -- what a checkpoint is too early for ------------------------------------------------------

    def on_train_batch_end(self, *arguments: Any) -> None:
        self._is_unlogged = True

    def on_train_batch_start(self, *arguments: Any) -> None:
        self._is_unlogged = False

    def on_validation_start(self, *arguments: Any) -> None:
        self._is_unlogged, self._is_validating = False, True

    def on_validation_end(self, *arguments: Any) -> None:
        self._is_validating = False

    def on_train_epoch_end(self, *arguments: Any) -> None:
        self._is_unlogged = False

    def on_train_end(self, *arguments: Any) -> None:
        self._is_unlogged = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not (self._is_unlogged or self._is_validating):
            return
        checkpoint[_KEY] = {
            "metrics": step_metrics(trainer) if self._is_unlogged else {},
            "step": logging_step(trainer),
            "is_validating": self._is_validating,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._missed = dict(checkpoint.get(_KEY, {}))

    # -- in the resumed run ---------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.fit_loop.is_resuming:
            return
        if self._catch_up(trainer, pl_module):
            validate_now(trainer)
        forget_half_validation(trainer)

    def finish(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: pl.LightningDataModule
    ) -> None:
        """To be called after the fit: one that was at its end already did not start."""
        if self._catch_up(trainer, pl_module):
            trainer.validate(pl_module, datamodule=data, verbose=False)

    def _catch_up(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Logs what was missed; returns whether a validation was, too, on every rank the same."""
        missed, self._missed = self._missed, {}
        if not missed:
            return False
        for logger in trainer.loggers if missed["metrics"] else ():
            logger.log_metrics(missed["metrics"], step=missed["step"])
            logger.save()
        is_due = missed["is_validating"] or validation_is_due(trainer)
        is_missed = is_due and not self.record.is_of(trainer, pl_module)
        return bool(trainer.strategy.broadcast(is_missed))


def _place(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    assert isinstance(pl_module, PolicyModule)
    return {"step": trainer.global_step, "weights": fingerprint(pl_module.policy)}
