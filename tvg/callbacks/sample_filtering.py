"""Sample filtering: selects the examples of the next epoch by their current difficulty.

This is TimeRFT (Time-R1, arXiv 2503.13377). After each epoch, the policy answers all queries of the
training list with its current weights. This updates each example's difficulty and prediction. The
next epoch trains on the examples that a selection keeps. Optimizer, schedule and reference continue
unchanged (the release restarts schedule and reference).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tvg.data.selection import NothingSelectedError
from tvg.report.filtering_rounds import RoundRecord, print_rounds
from tvg.tracking.sinks import log_file
from tvg.training.checkpoint_folder import CHECKPOINTS
from tvg.training.checkpoint_saving import save_newest
from tvg.training.datamodule_base import PromptDataModule
from tvg.training.evaluation import with_difficulty
from tvg.training.lightning_internals import (
    begin_epoch_afresh,
    forget_train_loader,
    num_stepped_batches,
)
from tvg.training.policy_module import PolicyModule
from tvg.training.rescoring import Rescoring
from tvg.types import GroundingExample, Segment

KEY = "callbacks.sample_filtering"
FOLDER = "filtering"
Select = Callable[[Sequence[GroundingExample]], list[GroundingExample]]
log = logging.getLogger(__name__)


class SampleFiltering(Callback):
    """Selects a new training list at the end of every epoch except the last.

    Round n is due as soon as n epochs are complete. Because only counts decide, a resumed run skips
    and repeats no round, no matter which Lightning hook it reaches first. Each round begins with a
    checkpoint, and each prediction is saved immediately. A run that is killed during a round
    continues this round without scoring any example again.

    `run_dir/filtering/round_NN.jsonl` contains every example with its difficulty, its prediction
    and whether it was selected (`data=custom` can read it). `round_NN.json` contains the
    statistics, which are also logged as `train/filtering/*`. NN is the number of epochs before the
    round.

    Args:
        run_dir: folder of the run.
        select: chooses from examples that have a difficulty; a partial of `tvg.data.selection`.
        rescore: "all" scores the complete list that the run started from. "selected" scores only
            the examples of the last epoch; the others keep their difficulty and may be selected
            again.
        score_first: also do a round before the first epoch (round 0).
        max_new_tokens: longest answer while scoring; None: the validation sampler's limit.
        mastered_above: IoU above which an example counts as mastered; the share is logged.

    Raises:
        ValueError: a setting is out of range; the message names the config key.
    """

    def __init__(
        self,
        *,
        run_dir: str | Path,
        select: Select,
        rescore: Literal["all", "selected"],
        score_first: bool,
        max_new_tokens: int | None,
        mastered_above: float,
    ) -> None:
        super().__init__()
        if rescore not in ("all", "selected"):
            raise ValueError(f"{KEY}.rescore: expected 'all' or 'selected', got {rescore!r}")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ValueError(f"{KEY}.max_new_tokens: expected at least 1, got {max_new_tokens}")
        if not 0 <= mastered_above <= 1:
            raise ValueError(f"{KEY}.mastered_above: expected 0 to 1, got {mastered_above}")
        self.run_dir = Path(run_dir)
        self.select = select
        self.rescore = rescore
        self.max_new_tokens = max_new_tokens
        self.mastered_above = mastered_above
        self.next_round = 0 if score_first else 1
        self.is_exhausted = False  # True if no example was selected, so that training stops
        # qid -> (100 * IoU, predicted segment)
        self.scores: dict[str, tuple[float, list[float] | None]] = {}

    # -- when a round is due --------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data = _data(trainer)
        if stage == "fit" and trainer.max_steps == -1 and trainer.is_global_zero:
            log.warning(
                "%s: the learning-rate schedule spans trainer.max_epochs=%s epochs of the first "
                "list (%d examples); set trainer.max_steps if later lists are much shorter",
                *(KEY, trainer.max_epochs, len(data.examples("train"))),
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Completes the round in which the run was killed, if any; does round 0 if requested."""
        is_resumed = trainer.fit_loop.is_resuming
        if self.is_exhausted:
            self._stop(trainer)
        if is_resumed and _data(trainer).training.is_between_epochs:
            begin_epoch_afresh(trainer)
        if self._is_due(trainer):
            self._make_round(trainer, pl_module, save=not is_resumed)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_due(trainer):
            self._make_round(trainer, pl_module, save=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._remove_partials(trainer, but=None)
        if trainer.is_global_zero:
            print_rounds(self.run_dir / FOLDER)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        training = _data(trainer).training
        steps_left = trainer.max_steps == -1 or trainer.global_step < trainer.max_steps
        epochs_left = trainer.max_epochs in (None, -1) or training.epochs_done < trainer.max_epochs
        is_over = trainer.should_stop or not (steps_left and epochs_left)
        return (
            training.is_between_epochs and training.epochs_done >= self.next_round and not is_over
        )

    # -- a round --------------------------------------------------------------------------------

    def _make_round(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, save: bool
    ) -> None:
        assert isinstance(pl_module, PolicyModule)
        if save:  # a run that is killed during the round resumes from this checkpoint
            save_newest(trainer, self.run_dir / CHECKPOINTS)
        data = _data(trainer)
        number = data.training.epochs_done
        rescoring = Rescoring(
            trainer=trainer,
            module=pl_module,
            data=data,
            max_new_tokens=self.max_new_tokens,
            folder=self.run_dir / FOLDER,
            name=f"round_{number:02d}",
        )
        self._remove_partials(trainer, but=rescoring.name)
        first = data.examples("train")
        to_score = first if self.rescore == "all" else data.training.examples
        predictions = rescoring.run(to_score)
        for example in with_difficulty(to_score, predictions.values(), pl_module.task):
            if example.qid in predictions:
                segment = example.prediction
                assert example.difficulty is not None
                told = None if segment is None else list(segment)
                self.scores[example.qid] = (example.difficulty, told)
        unreadable = {example.qid for example in to_score} - predictions.keys()
        known = [self._with_score(example) for example in first]
        chosen = self._chosen([example for example in known if example.qid not in unreadable])
        record = RoundRecord(
            number=number,
            step=trainer.global_step,
            examples=known,
            chosen=chosen,
            predictions=predictions,
            num_unreadable=len(unreadable),
            mastered_above=self.mastered_above,
        )
        if trainer.is_global_zero:
            self._report(trainer, record)
        self.next_round = number + 1
        if chosen:
            data.replace_train_examples(chosen)
            forget_train_loader(trainer)
        else:
            self.is_exhausted = True
            self._stop(trainer)
        trainer.strategy.barrier("sample_filtering")

    def _chosen(self, examples: list[GroundingExample]) -> list[GroundingExample]:
        try:
            return self.select(examples) if examples else []
        except NothingSelectedError:
            return []
        except ValueError as error:
            raise ValueError(f"{KEY}.select: {error}") from error

    def _report(self, trainer: pl.Trainer, record: RoundRecord) -> None:
        """Writes a round's files and sends them and the numbers to the loggers."""
        for path in record.write(self.run_dir / FOLDER):
            log_file(trainer, path, folder="filtering")
        named = {f"train/filtering/{key}": float(value) for key, value in record.numbers().items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=num_stepped_batches(trainer))
        log.info("%s", record)

    def _with_score(self, example: GroundingExample) -> GroundingExample:
        if example.qid not in self.scores:
            return example
        difficulty, segment = self.scores[example.qid]
        prediction = None if segment is None else Segment(*segment)
        return replace(example, difficulty=difficulty, prediction=prediction)

    def _stop(self, trainer: pl.Trainer) -> None:
        log.warning(
            "%s: no example of the training list is left after %s.select in round %d: training "
            "stops at step %d (see %s)",
            *(KEY, KEY, self.next_round - 1, trainer.global_step, self.run_dir / FOLDER),
        )
        trainer.should_stop = True

    def _remove_partials(self, trainer: pl.Trainer, *, but: str | None) -> None:
        for path in (self.run_dir / FOLDER).glob(f"*.rank_{trainer.global_rank}.partial.jsonl"):
            if but is None or not path.name.startswith(f"{but}."):
                path.unlink()

    # -- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        scores = {qid: list(score) for qid, score in self.scores.items()}
        return {
            "next_round": self.next_round,
            "is_exhausted": self.is_exhausted,
            "scores": scores,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.next_round = state_dict["next_round"]
        self.is_exhausted = state_dict["is_exhausted"]
        self.scores = {qid: (score[0], score[1]) for qid, score in state_dict["scores"].items()}


def _data(trainer: pl.Trainer) -> PromptDataModule:
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, PromptDataModule):
        raise ValueError(f"{KEY}: needs a data module of prompts, got {type(data).__name__}")
    return data
