"""How Lightning's loops are brought to a clean start of an epoch, with other batches than before.

Lightning keeps its loader and the number of its batches for the whole run, and a run resumed at the
end of an epoch begins in one of three stages of that end. This is the only place that knows.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def forget_train_loader(trainer: Trainer) -> None:
    """Makes Lightning ask the data module for its training batches anew, at the next epoch."""
    trainer.fit_loop._combined_loader = None


def begin_epoch_afresh(trainer: Trainer) -> None:
    """Makes a resumed run begin with a new epoch; to be called in `on_train_start`.

    What the checkpoint says of the epoch before counts as done: its validation, too, if the run was
    stopped in it.
    """
    loop, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if batches.restarted_on_train_batch_end:  # counted behind the hooks that save checkpoints
        batches._batches_that_stepped += 1
    counts: Any  # annotated in Lightning as their base class
    for counts in (loop.epoch_progress.total, loop.epoch_progress.current):
        counts.started = counts.processed = counts.completed = counts.ready
    counts = batches.batch_progress.total
    counts.started = counts.processed = counts.completed = counts.ready
    loop.reset_restart_stage()
    batches.reset_restart_stage()
    batches.restarting = False  # the counts of its current epoch are then set to 0
