"""Completes the logging and the validation of a checkpoint's step when its run is resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tvg.core.text_files import write_json
from tvg.tracking.steady import reported_only
from tvg.training.checkpoint_saving import note_validation
from tvg.training.lightning_internals import (
    forget_half_validation,
    num_stepped_batches,
    step_metrics,
    validate_now,
    validation_is_due,
)
from tvg.training.policy_module import PolicyModule
from tvg.training.trained_state import fingerprint

FILE_NAME = "validation.json"
_KEY = "missed"  # key in a checkpoint


class ValidationRecord(Callback):
    """Keeps the metrics of the last validation in `run_dir/validation.json`.

    The file records which weights were validated at which step. It is written after the loggers
    have received the metrics. NaN and infinity are written as null, because JSON has no numbers
    for them. Only callbacks that save checkpoints may come after this callback.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, *, run_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(run_dir) / FILE_NAME

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        place = _place(trainer, pl_module)  # on all ranks, which may share the weights
        if not trainer.is_global_zero:
            return
        names = (name for name in trainer.callback_metrics if name.startswith("val/"))
        values = {name: float(trainer.callback_metrics[name]) for name in names}
        metrics = {name: v if math.isfinite(v) else None for name, v in values.items()}
        record = {**place, "metrics": metrics}
        # An error is only reported: without the file, a resumed run validates again.
        with reported_only(self.path):
            write_json(self.path, record)

    def metrics(self) -> dict[str, float]:
        """Returns the last validation's metrics, NaN if not finite; empty without a validation."""
        found = self._read().get("metrics", {})
        return {str(name): math.nan if v is None else float(v) for name, v in found.items()}

    def is_of(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Returns whether the last validation was at the current step with the current weights."""
        found = self._read()
        return all(found.get(name) == now for name, now in _place(trainer, pl_module).items())

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class CatchingUp(Callback):
    """Makes a resumed run do the logging and validation that the previous run did not reach.

    A checkpoint is saved as soon as a step has changed the weights. At that point, Lightning has
    neither passed the step's metrics to the loggers nor run the validation that follows. The
    metrics are therefore saved in the checkpoint and logged on resume, with the same values at the
    same step. The resumed run validates before its first step, unless `record` already contains
    this validation. The callbacks of the config have to come after this callback.

    Args:
        record: record of this run's validations.
    """

    def __init__(self, *, record: ValidationRecord) -> None:
        super().__init__()
        self.record = record
        self._is_unlogged = False  # True if the last step's metrics are not logged yet
        self._is_validating = False
        self._missed: dict[str, Any] = {}  # as loaded from the checkpoint

    # -- saving unlogged metrics in a checkpoint ------------------------------------------------

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
            "step": num_stepped_batches(trainer),
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
        """Catches up after the fit if the resumed run was complete, so that no step was trained."""
        if self._catch_up(trainer, pl_module):
            trainer.validate(pl_module, datamodule=data, verbose=False)

    def _catch_up(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Logs the missed metrics; returns on all ranks whether a validation was missed."""
        missed, self._missed = self._missed, {}
        if not missed:
            return False
        for logger in trainer.loggers if missed["metrics"] else ():
            logger.log_metrics(missed["metrics"], step=missed["step"])
            logger.save()
        is_due = missed["is_validating"] or validation_is_due(trainer)
        is_missed = is_due and not self.record.is_of(trainer, pl_module)
        if trainer.strategy.broadcast(is_missed):
            return True
        if is_due:  # the checkpoint was saved before this validation
            note_validation(trainer, self.record.metrics())
        return False


def _place(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    assert isinstance(pl_module, PolicyModule)
    return {"step": trainer.global_step, "weights": fingerprint(pl_module.policy)}
