"""All uses of Lightning's private members and modules: loops, logged metrics and progress bar.

Lightning keeps its loader and its number of batches for the entire run. At the end of an epoch, the
loops can be saved in any of three stages, in which a resumed run then starts. A checkpoint saved in
`on_train_batch_end` is written before Lightning counts the step for its loggers and before the
step's validation. When the run is resumed, Lightning treats both as done.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm as Tqdm  # for other files


def num_stepped_batches(trainer: Trainer) -> int:
    """Returns the number of completed training batches, which Lightning logs as the step."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def forget_logged(trainer: Trainer) -> None:
    """Clears the metrics of earlier batches; otherwise, the next batch would log them again."""
    if trainer._results is not None:
        trainer._results.clear()


def forget_train_loader(trainer: Trainer) -> None:
    """Makes Lightning request a new training loader from the data module at the next epoch."""
    trainer.fit_loop._combined_loader = None


def begin_epoch_afresh(trainer: Trainer) -> None:
    """Makes a resumed run begin with a new epoch; call it in `on_train_start`.

    The checkpoint's epoch counts as done, even if the run was stopped during its validation.
    """
    loop, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if batches.restarted_on_train_batch_end:  # counted after the hooks that save checkpoints
        batches._batches_that_stepped += 1
    counts: Any  # Lightning annotates these as their base class
    for counts in (loop.epoch_progress.total, loop.epoch_progress.current):
        counts.started = counts.processed = counts.completed = counts.ready
    counts = batches.batch_progress.total
    counts.started = counts.processed = counts.completed = counts.ready
    loop.reset_restart_stage()
    batches.reset_restart_stage()
    batches.restarting = False  # the counts of its current epoch are then set to 0


def step_metrics(trainer: Trainer) -> dict[str, float]:
    """Returns the metrics that Lightning is about to log for this step; may be empty."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
    return {**metrics, "epoch": float(trainer.current_epoch)} if metrics else {}


def validation_is_due(trainer: Trainer) -> bool:
    """Returns whether a validation follows the last training batch.

    Call it in `on_train_start` of a resumed run, or after the fit.
    """
    loop = trainer.fit_loop.epoch_loop
    fetcher: Any = trainer.fit_loop._data_fetcher
    return bool(trainer.val_check_batch) and loop._should_check_val_fx(fetcher)


def validate_now(trainer: Trainer) -> None:
    """Runs a complete validation in `on_train_start`, as between two training steps."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    forget_half_validation(trainer)
    trainer.validating = True
    loop.run()
    trainer.training = True


def forget_half_validation(trainer: Trainer) -> None:
    """Keeps a resumed run from continuing the validation in which the checkpoint was saved."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    loop.reset_restart_stage()
