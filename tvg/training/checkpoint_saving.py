"""Saves checkpoints during training, and keeps the newest ones and the best one."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from tvg.tracking.steady import reported_only
from tvg.training.checkpoint import AtomicCheckpointIO
from tvg.training.checkpoint_background import BackgroundCheckpointIO
from tvg.training.checkpoint_folder import checkpoint_name, checkpoints_of, tidy

KEY = "callbacks.checkpoint"
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class SaveCheckpoints(Checkpoint):
    """Saves a checkpoint every n optimizer steps; keeps the last k and the best one by a metric.

    A checkpoint contains everything that training changes: weights, optimizer, schedule, random
    states and the position in the data. `keep_best` also saves after a validation whose metric is
    better than all before it. If that step was already saved, its checkpoint is kept.

    The best value is part of the checkpoint's state. If a run continues from an earlier
    checkpoint, the values after this checkpoint are therefore forgotten and found again.

    Args:
        dirpath: folder of the checkpoints.
        every_n_train_steps: optimizer steps between two checkpoints, at least 1.
        keep_last: number of newest checkpoints to keep, at least 1.
        keep_best: validation metric, such as "val/miou"; None: keep no best checkpoint.
        mode: whether a better value of the metric is larger ("max") or smaller ("min").
        asynchronous: write the file while training continues. This needs host memory for one
            checkpoint.

    Raises:
        ValueError: a setting is out of range, or the metric is not logged; the message names the
            config key.
    """

    def __init__(
        self,
        *,
        dirpath: str | Path,
        every_n_train_steps: int,
        keep_last: int,
        keep_best: str | None,
        mode: Literal["max", "min"],
        asynchronous: bool,
    ) -> None:
        super().__init__()
        counts = {"every_n_train_steps": every_n_train_steps, "keep_last": keep_last}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{KEY}.{name}: expected at least 1, got {count}")
        if mode not in ("max", "min"):
            raise ValueError(f"{KEY}.mode: expected max or min, got {mode!r}")
        self.folder = Path(dirpath)
        self.every_n_train_steps = every_n_train_steps
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.mode = mode
        self.asynchronous = asynchronous
        self.best_value: float | None = None
        self.best_step: int | None = None
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # The quotients are compared, because one batch may have several optimizer steps.
        last, self._last_step = self._last_step, trainer.global_step
        if trainer.global_step // self.every_n_train_steps > last // self.every_n_train_steps:
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            logged = trainer.callback_metrics.items()
            self.note_validation(trainer, {name: float(value) for name, value in logged})

    def note_validation(self, trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
        """Keeps the current step's checkpoint if its validation is the best so far.

        Every rank must call this.

        Args:
            trainer: the trainer, at the validated step.
            metrics: the logged metrics by name.
        """
        if self.keep_best is None or not any(name.startswith("val/") for name in metrics):
            return
        if self.keep_best not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("val/")))
            raise ValueError(
                f"{KEY}.keep_best: {self.keep_best} is not logged by validations; there are {known}"
            )
        value = metrics[self.keep_best]
        if not trainer.strategy.broadcast(self._is_better(value)):
            return
        self.best_value, self.best_step = value, trainer.global_step
        is_saved = (self.folder / checkpoint_name(trainer.global_step)).exists()
        if trainer.strategy.broadcast(is_saved):
            self._tidy_after_save(trainer)
        else:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Saves the current step on all ranks; every rank must call this."""
        trainer.save_checkpoint(
            self.folder / checkpoint_name(trainer.global_step), weights_only=False
        )
        self._tidy_after_save(trainer)

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best_value is None:
            return True
        return value > self.best_value if self.mode == "max" else value < self.best_value

    def _tidy_after_save(self, trainer: pl.Trainer) -> None:
        best = None if self.keep_best is None else self.best_step
        _tidy_after_save(trainer, self.folder, keep_last=self.keep_last, best=best)

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value = state_dict["best_value"]
        self.best_step = state_dict["best_step"]


def save_newest(trainer: pl.Trainer, folder: Path) -> None:
    """Saves a checkpoint of the current step in `folder` on all ranks, and removes old ones.

    Without a `SaveCheckpoints` callback, only this checkpoint is kept. Every rank must call this.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, SaveCheckpoints) and callback.folder == folder:
            callback.save(trainer)
            return
    trainer.save_checkpoint(folder / checkpoint_name(trainer.global_step), weights_only=False)
    _tidy_after_save(trainer, folder, keep_last=1, best=None)


def save_last(trainer: pl.Trainer, folder: Path) -> None:
    """Does the same, and waits until the checkpoint is written.

    Raises:
        OSError: the checkpoint could not be written; raised on every rank.
    """
    save_newest(trainer, folder)
    io = trainer.strategy.checkpoint_io
    error = None
    if isinstance(io, AtomicCheckpointIO):
        io.wait()
        error = io.failure
    found = None if error is None else (error.errno, error.strerror, str(error.filename))
    found = trainer.strategy.broadcast(found)
    if found is not None:
        number, text, name = found
        remedy = "make the folder writable" if number in _NOT_WRITABLE else "free disk space"
        advice = f"{remedy}, then continue with the same command and resume=true"
        raise OSError(number, f"{text}; {advice}" if checkpoints_of(folder) else text, name)


def note_validation(trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
    """Tells the callbacks the metrics of a validation that was made before the run was resumed."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, SaveCheckpoints):
            callback.note_validation(trainer, metrics)


def checkpoint_io(callbacks: Sequence[pl.Callback]) -> AtomicCheckpointIO:
    """Returns the plugin that writes the checkpoints of these callbacks."""
    saving = [c for c in callbacks if isinstance(c, SaveCheckpoints)]
    is_background = any(callback.asynchronous for callback in saving)
    return BackgroundCheckpointIO() if is_background else AtomicCheckpointIO()


def _tidy_after_save(
    trainer: pl.Trainer, folder: Path, *, keep_last: int, best: int | None
) -> None:
    if not trainer.is_global_zero:
        return
    action = partial(
        _tidy_reported, folder, newest=trainer.global_step, keep_last=keep_last, best=best
    )
    io = trainer.strategy.checkpoint_io
    if isinstance(io, AtomicCheckpointIO):
        io.after_save(action)
    else:
        action()


def _tidy_reported(folder: Path, *, newest: int, keep_last: int, best: int | None) -> None:
    with reported_only(folder):  # too many checkpoints are no reason to stop
        tidy(folder, newest=newest, keep_last=keep_last, best=best)
