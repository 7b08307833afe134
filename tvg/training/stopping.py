"""Stops training on a signal: after the current step, with a checkpoint, on all ranks together."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from tvg.core import interruption
from tvg.training.checkpoint_folder import CHECKPOINTS, LAST, checkpoints_of
from tvg.training.checkpoint_saving import SaveCheckpoints, save_last


def stop_is_asked(trainer: Trainer) -> bool:
    """Returns whether any rank got a stop signal or nears its deadline; all ranks must call it."""
    interruption.check_deadline()
    mine = interruption.pending() is not None
    if trainer.world_size == 1:
        return mine
    asked = trainer.strategy.reduce_boolean_decision(mine, all=False)
    if asked:
        interruption.ask(signal.SIGTERM)
    return asked


class RoundsOfAllRanks:
    """Splits work into rounds; a signal to any rank stops all ranks after the same round.

    Every round makes one collective decision. Ranks may have different numbers of rounds. A rank
    that finishes early keeps taking part in the decisions, so that no other rank waits for it.

    Args:
        trainer: the trainer whose ranks share the work.
        num_rounds: number of rounds of this rank.
    """

    def __init__(self, trainer: Trainer, num_rounds: int) -> None:
        self._trainer = trainer
        self._num_left = num_rounds
        if trainer.world_size > 1:
            mine = torch.tensor(num_rounds, device=trainer.strategy.root_device)
            self._num_left = int(trainer.strategy.all_gather(mine).max())

    def end_round(self) -> None:
        """Ends a round; call it after each one.

        Raises:
            Interrupted: a rank received a signal.
        """
        self._num_left -= 1
        if stop_is_asked(self._trainer):
            interruption.check(is_agreed=True)

    def end(self) -> None:
        """Takes part in the remaining rounds of other ranks; call it after the last round."""
        while self._trainer.world_size > 1 and self._num_left > 0:
            self.end_round()


def resume_advice(run_dir: Path, argv: Sequence[str] | None = None) -> list[str]:
    """Returns lines that name the checkpoint of a stopped run and the command that resumes it.

    Args:
        run_dir: folder of the run.
        argv: arguments of the command; None: the arguments of this process.
    """
    words = list(sys.argv if argv is None else argv)[1:]
    last = run_dir / CHECKPOINTS / LAST
    if not checkpoints_of(run_dir / CHECKPOINTS):
        return ["no checkpoint was saved yet: run the same command to start from the beginning"]
    kept = [word for word in words if word.partition("=")[0] not in ("resume", "+resume")]
    if {"-m", "--multirun"} & set(words):
        return [f"saved {last}", "to resume: the same sweep with resume=auto"]
    if not any(w.partition("=")[0] in ("name", "run_dir", "hydra.run.dir") for w in kept):
        kept.append(f"hydra.run.dir={run_dir}")
    command = shlex.join(["tvg-train", *kept, "resume=true"])
    return [f"saved {last}", f"to resume: {command}"]


class StoppableModule(LightningModule):
    """A module that stops training on a stop signal or before its deadline, after the current step.

    It saves a checkpoint and logs the step's metrics; `trainer.fit` then returns early. During a
    validation, it raises `Interrupted` after the current batch, and the resumed run validates
    again. A signal before the first step, or outside training, raises `Interrupted` immediately.
    The caller of `trainer.fit` must call `interruption.release` afterwards.
    """

    is_stopped = False  # the checkpoint of an interrupted training has been saved
    _stops_later = False  # trainer.max_time or a callback ends training after the current step

    @property
    def is_between_steps(self) -> bool:
        """True if the last batch completed an optimizer step, so a checkpoint can be saved."""
        return True

    def on_train_start(self) -> None:
        self.is_stopped = self._stops_later = False
        interruption.hold()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.is_stopped:  # trainer.min_steps keeps Lightning from stopping
            interruption.check(is_agreed=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # This runs after the hooks of all callbacks, so the checkpoint has their current state.
        if not self.is_between_steps:  # otherwise, the groups collected so far would be lost
            self._stops_later |= self.trainer.should_stop
            self.trainer.should_stop = False
            return
        self.trainer.should_stop |= self._stops_later
        if stop_is_asked(self.trainer):
            self._save_for_stop()
            self.trainer.should_stop = True

    def on_validation_start(self) -> None:
        self._stop_in_validation()

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop_in_validation()

    def _stop_in_validation(self) -> None:
        # While a step still collects groups, training continues until the step is done.
        if self.is_between_steps and stop_is_asked(self.trainer):
            # Outside of `fit`, nothing was trained since the last checkpoint.
            if self.trainer.state.fn == "fit" and not self.is_stopped:
                self._save_for_stop()
            interruption.check(is_agreed=True)

    def _save_for_stop(self) -> None:
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, SaveCheckpoints):
                save_last(self.trainer, callback.folder)
        self.is_stopped = True
