"""Checks the checkpoint and applies the schedule when a new or resumed run starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import LambdaLR

from tvg.training.schedule import set_rates

KEY = "run_identity"  # in a checkpoint
NOTES = "export_notes"  # in a checkpoint: the text files of an export, name -> content
log = logging.getLogger(__name__)


class RunStart(Callback):
    """Saves a run's identity in its checkpoints, and refuses checkpoints of other runs.

    Args:
        decides: dotted config key -> value, for all settings that affect the result of the run.
        compare: called with the same mapping from a checkpoint; raises a ValueError if the run
            cannot continue from it.
        begin: called when training begins, on every rank.
        checkpoint: the checkpoint to resume; None for a new run.
        notes: text files for an export, name -> content, which checkpoints contain for tvg-export.
    """

    def __init__(
        self,
        *,
        decides: Mapping[str, Any],
        compare: Callable[[Mapping[str, Any]], None],
        begin: Callable[[], None],
        checkpoint: Path | None,
        notes: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.decides = dict(decides)
        self.compare = compare
        self.begin = begin
        self.checkpoint = checkpoint
        self.notes = dict(notes)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[KEY] = self.decides
        checkpoint[NOTES] = self.notes

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        held = checkpoint.get(KEY)
        if held is None:
            raise ValueError(
                f"resume: {self.checkpoint} records no settings to compare with: it was written by "
                "another program, or by an earlier tvg-train; model.path accepts an export"
            )
        self.compare(held)
        done = int(checkpoint["global_step"])
        if 0 <= trainer.max_steps < done:
            raise ValueError(
                f"trainer.max_steps: {trainer.max_steps}, but {self.checkpoint} is at step {done}"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the learning rates of a resumed run by its current schedule, then calls `begin`."""
        if self.checkpoint is not None:
            for config in trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, LambdaLR):
                    set_rates(config.scheduler)
        self.begin()
