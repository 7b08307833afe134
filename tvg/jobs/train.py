"""Trains a policy from a composed config and exports it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from omegaconf import DictConfig

from tvg.build import build_components, build_module, build_trainer
from tvg.callbacks.catching_up import CatchingUp, ValidationRecord
from tvg.callbacks.run_start import RunStart
from tvg.config.record_file import RECORD_FILE
from tvg.config.resume_rules import refuse_changes
from tvg.config.run_folder import RunFolder, check_resumed, claimed
from tvg.core import interruption
from tvg.core.deadline import Deadline, make_deadline
from tvg.core.interruption import Interrupted
from tvg.core.launched import is_first_rank
from tvg.core.writing import remove_leftovers_of_run
from tvg.model.exporting import export_checkpoint, rehearse_export
from tvg.recorded import record_text
from tvg.tracking.mlflow_guard import state_kept
from tvg.tracking.run_status import ending_runs
from tvg.training.checkpoint import resume_path
from tvg.training.checkpoint_folder import CHECKPOINTS, checkpoints_of
from tvg.training.checkpoint_saving import save_last
from tvg.training.quiet_logs import quiet_libraries
from tvg.training.ranks import naming_lost_ranks
from tvg.training.stopping import StoppableModule, resume_advice

log = logging.getLogger(__name__)

EXPORT = "export"


def train(cfg: DictConfig) -> float | None:
    """Trains a policy and writes `export/`, a plain Hugging Face folder.

    Returns:
        The task's main metric in the last validation, such as val/miou; None without validation.

    Raises:
        Interrupted: on a stop signal or before `train.deadline`, after the step in progress was
            finished and saved.
    """
    quiet_libraries()
    try:
        with (
            claimed(cfg, "train") as folder,
            state_kept(folder.path, lambda: folder.has_begun),
            interruption.holds_end_inside(),
            naming_lost_ranks(),
        ):
            return _train(cfg, folder)
    except Interrupted as stop:
        if stop.is_agreed and checkpoints_of(Path(cfg.run_dir) / CHECKPOINTS):
            stop.is_saved = True  # all ranks stopped between steps, after a save
        if stop.is_agreed and not is_first_rank():
            # If a rank exits with a nonzero code, Lightning kills all ranks that it has started.
            # The first rank could then not finish its report.
            raise SystemExit(0) from stop
        stop.advice = resume_advice(Path(cfg.run_dir))
        raise


def _train(cfg: DictConfig, folder: RunFolder) -> float | None:
    run_dir = folder.path
    interruption.set_deadline(_deadline(cfg))
    gpu_check(cfg)
    ckpt_path = resume_path(cfg.resume, run_dir)
    # Read now, because the checkpoint that contains the record may be moved later.
    notes = {RECORD_FILE: record_text(cfg)}
    start = run_start(folder, ckpt_path, notes)
    remove_leftovers_of_run(run_dir)
    seed_everything(cfg.seed, workers=True, verbose=False)
    parts = build_components(cfg, split="train")
    module = build_module(cfg, parts)
    validations = ValidationRecord(run_dir=run_dir)
    catching_up = CatchingUp(record=validations)
    trainer = build_trainer(cfg, first=(start, catching_up), last=(validations,))
    with ending_runs(trainer.loggers), closing(parts.rollout):
        if trainer.is_global_zero:
            rehearse_export(parts.policy, parts.processor, run_dir / EXPORT, notes=notes)
        trainer.fit(module, datamodule=parts.data, ckpt_path=ckpt_path, weights_only=True)
        folder.begin()  # needed if no step was left to train
        if isinstance(module, StoppableModule) and module.is_stopped:
            interruption.check(is_agreed=True)
        catching_up.finish(trainer, module, parts.data)
        if trainer.checkpoint_callback is not None:  # saves the last step at any saving interval
            save_last(trainer, run_dir / CHECKPOINTS)
        interruption.release(is_saved=trainer.checkpoint_callback is not None)
        export = export_checkpoint(  # on all ranks, which may share the weights
            parts.policy,
            parts.processor,
            run_dir / EXPORT,
            notes=notes,
            is_writer=trainer.is_global_zero,
        )
        if trainer.is_global_zero:
            log.info("exported to %s", export)
    name = f"val/{parts.task.main_metric}"
    value = trainer.callback_metrics.get(name, validations.metrics().get(name))
    return None if value is None else float(value)


def _deadline(cfg: DictConfig) -> Deadline | None:
    found = make_deadline(
        cfg.train.deadline, margin_s=cfg.train.deadline_margin_s, environment=os.environ
    )
    if found is not None:
        end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.end_s))
        log.info("training will be saved and stopped before %s (train.deadline)", end)
    return found


def run_start(folder: RunFolder, checkpoint: Path | None, notes: Mapping[str, str]) -> RunStart:
    """Returns the callback that begins a run; if possible, already checks the checkpoint to resume.

    Raises:
        ValueError: the checkpoint's run had settings that a resumed run cannot change.
    """
    if checkpoint is not None:
        check_resumed(checkpoint, folder.identity)
    return RunStart(
        decides=folder.identity.decides,
        compare=partial(refuse_changes, now=folder.identity, where=str(checkpoint)),
        begin=folder.begin,
        checkpoint=checkpoint,
        notes=notes,
    )


def gpu_check(cfg: DictConfig) -> None:
    """Stops a GPU run on a machine with too few GPUs, before anything is read.

    Raises:
        ValueError: `trainer.accelerator` or `trainer.devices` require GPUs that are missing.
    """
    if cfg.trainer.get("accelerator") not in ("gpu", "cuda"):
        return
    found, wanted = torch.cuda.device_count(), cfg.trainer.get("devices")
    if not found:
        raise ValueError(
            f"trainer.accelerator: {cfg.trainer.accelerator}, but torch {torch.__version__} sees "
            "no GPU on this machine: use trainer=cpu to train without GPUs"
        )
    if isinstance(wanted, int) and wanted > found:
        raise ValueError(f"trainer.devices: {wanted} GPUs requested, but {found} found")
