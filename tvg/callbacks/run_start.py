"""Checks the checkpoint and applies changed settings when a new or resumed run starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tvg.training.schedule import set_rates

KEY = "run_identity"  # in a checkpoint
NOTES = "export_notes"  # in a checkpoint: the text files of an export, name -> content
# Options of parameter groups that are set by the config, not by the checkpoint. "initial_lr" is the
# rate that a schedule multiplies.
_OF_CONFIG = ("lr", "initial_lr", "weight_decay")
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

    Attributes:
        changed: dotted keys whose values differ from those in the checkpoint.
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
        self.changed: frozenset[str] = frozenset()
        self._options: list[list[dict[str, Any]]] = []  # of each optimizer's parameter groups

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
        keys = {*held, *self.decides}
        self.changed = frozenset(k for k in keys if held.get(k) != self.decides.get(k))
        done = int(checkpoint["global_step"])
        if 0 <= trainer.max_steps < done:
            raise ValueError(
                f"trainer.max_steps: {trainer.max_steps}, but {self.checkpoint} is at step {done}"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the optimizer's options before Lightning restores those of the checkpoint."""
        self._options = [
            [{name: group[name] for name in _OF_CONFIG if name in group} for group in groups]
            for groups in (optimizer.param_groups for optimizer in trainer.optimizers)
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Applies the current rates, weight decay and schedule to a resumed run; calls `begin`."""
        if self.checkpoint is not None:
            for optimizer, options in zip(trainer.optimizers, self._options, strict=True):
                _set_options(optimizer, options)
            for config in trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, LambdaLR):
                    set_rates(config.scheduler)
            if self.changed:
                log.info("resumed with changed settings: %s", ", ".join(sorted(self.changed)))
        self.begin()


def _set_options(optimizer: Optimizer, options: list[dict[str, Any]]) -> None:
    for group, mine in zip(optimizer.param_groups, options, strict=True):
        group.update(mine)


def changed_settings(trainer: pl.Trainer) -> frozenset[str]:
    """Returns the dotted keys that a resumed run has changed; empty for a new run."""
    found = [each.changed for each in trainer.callbacks if isinstance(each, RunStart)]  # type: ignore[attr-defined]
    return found[0] if found else frozenset()
