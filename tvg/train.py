"""Training: from a composed config to a trained policy and its export."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ProgressBar
from omegaconf import DictConfig

from tvg.callbacks.catching_up import CatchingUp, ValidationRecord
from tvg.callbacks.mlflow_guard import state_kept
from tvg.callbacks.run_start import RunStart
from tvg.callbacks.run_status import ending_runs
from tvg.callbacks.steady import steady
from tvg.config import build
from tvg.config.hydra_folders import is_first_rank
from tvg.config.record_file import RECORD_FILE
from tvg.config.recorded import record_text
from tvg.config.resume_rules import refuse_changes
from tvg.config.run_folder import RunFolder, check_resumed, claimed
from tvg.core import interruption
from tvg.core.interruption import Interrupted
from tvg.core.writing import remove_leftovers_of_run
from tvg.data.annotations import Split
from tvg.model.exporting import export_checkpoint, rehearse_export
from tvg.model.loading import Checkpoint
from tvg.model.policy import Policy
from tvg.reward.weighted import WeightedReward
from tvg.rollout.base import Rollout
from tvg.task.grounding import GroundingTask
from tvg.training.checkpoint import (
    CHECKPOINTS,
    LAST,
    AtomicCheckpointIO,
    resume_path,
    save_last,
)
from tvg.training.datamodule_base import PromptDataModule
from tvg.training.noise import quiet_libraries
from tvg.training.stopping import StoppableModule, resume_advice

log = logging.getLogger(__name__)

EXPORT = "export"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects that training, evaluation and prediction share, built from the config."""

    processor: Any
    policy: Policy
    task: GroundingTask
    rollout: Rollout
    data: PromptDataModule


def build_parts(cfg: DictConfig, *, split: Split) -> Parts:
    """Builds task, sampler, data and model; reads annotations first, as loading weights is slow."""
    forward_by = cfg.policy.forward if "policy" in cfg else "shared_prefix"
    task = build(cfg.prompt)
    checkpoint: Checkpoint = build(cfg.model)
    processor = checkpoint.load_processor()
    data = build_data(cfg, task=task, processor=processor)
    data.prepare_data()
    data.examples(split)
    return Parts(
        processor=processor,
        policy=checkpoint.load_policy(processor, forward_by=forward_by),
        task=task,
        rollout=build(cfg.rollout),
        data=data,
    )


def build_data(
    cfg: DictConfig, *, task: GroundingTask | None = None, processor: Any | None = None
) -> PromptDataModule:
    """Builds the data module; without task and processor, it gives examples but no batches."""
    data: PromptDataModule = build(cfg.data)(task=task, processor=processor, seed=cfg.seed)
    return data


def build_module(cfg: DictConfig, parts: Parts) -> LightningModule:
    """Builds the objective; it gets the sampler and the rewards only if it takes them."""
    module: LightningModule = offer(
        build(cfg.objective),
        policy=parts.policy,
        tokenizer=parts.processor.tokenizer,
        task=parts.task,
        rollout=parts.rollout,
        eval_rollout=parts.rollout.greedy(),
        reward=build_reward(cfg.reward)
        if cfg.get("reward")
        else None,  # reward=[] for objective=sft
        scoring_fps=cfg.policy.get("scoring_fps"),
        seed=cfg.seed,
    )
    return module


def offer(factory: Callable[..., Any], **parts: Any) -> Any:
    """Calls `factory` with those of the parts that its signature accepts."""
    wanted = inspect.signature(factory).parameters
    return factory(**{name: part for name, part in parts.items() if name in wanted})


def build_reward(cfg: DictConfig) -> WeightedReward:
    """Builds the weighted sum of the rewards that the config names."""
    return WeightedReward(
        rewards={str(name): build(node.reward) for name, node in cfg.items()},
        weights={str(name): float(node.weight) for name, node in cfg.items()},
    )


def train(cfg: DictConfig) -> float | None:
    """Trains, and writes `export/`, a plain Hugging Face folder; returns the last val/miou.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after the step in progress was finished and saved.
    """
    quiet_libraries()
    try:
        with (
            claimed(cfg, "train") as folder,
            state_kept(folder.path, lambda: folder.has_begun),
            interruption.holds_end_inside(),
        ):
            return _train(cfg, folder)
    except Interrupted as stop:
        if stop.is_agreed and not is_first_rank():
            # If a rank exits with a nonzero code, Lightning kills all ranks that it has started,
            # and the first one in the middle of its report.
            raise SystemExit(0) from stop
        stop.advice = resume_advice(Path(cfg.run_dir))
        raise


def _train(cfg: DictConfig, folder: RunFolder) -> float | None:
    run_dir = folder.path
    gpu_check(cfg)
    ckpt_path = resume_path(cfg.resume, run_dir)
    start = run_start(folder, ckpt_path)
    remove_leftovers_of_run(run_dir)
    seed_everything(cfg.seed, workers=True, verbose=False)
    notes = {RECORD_FILE: record_text(cfg)}  # before the checkpoint it may come from is moved
    parts = build_parts(cfg, split="train")
    module = build_module(cfg, parts)
    validations = ValidationRecord(run_dir=run_dir)
    catching_up = CatchingUp(record=validations)
    trainer = build_trainer(cfg, first=(start, catching_up), last=(validations,))
    with ending_runs(trainer.loggers):
        if trainer.is_global_zero:
            rehearse_export(parts.policy, parts.processor, run_dir / EXPORT, notes=notes)
        trainer.fit(module, datamodule=parts.data, ckpt_path=ckpt_path, weights_only=True)
        folder.begin()  # in case nothing was left to train
        if isinstance(module, StoppableModule) and module.is_stopped:
            interruption.check(is_agreed=True)
        catching_up.finish(trainer, module, parts.data)
        if trainer.checkpoint_callback is not None:  # saves the end, whatever the saving interval
            save_last(trainer, run_dir / CHECKPOINTS / LAST)
        interruption.release()
        if trainer.is_global_zero:
            export = export_checkpoint(
                parts.policy,
                parts.processor,
                run_dir / EXPORT,
                notes=notes,
            )
            log.info("exported to %s", export)
    miou = trainer.callback_metrics.get("val/miou", validations.metrics().get("val/miou"))
    return None if miou is None else float(miou)


def build_all(nodes: DictConfig | None) -> list[Any]:
    """Builds every entry of a group; an entry set to null is left out."""
    return [build(node) for node in (nodes or {}).values() if node is not None]


def run_start(folder: RunFolder, checkpoint: Path | None) -> RunStart:
    """Returns the callback that begins a run; refuses another run's checkpoint early if it can.

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
    )


def build_trainer(
    cfg: DictConfig, *, first: Sequence[Callback] = (), last: Sequence[Callback] = ()
) -> Trainer:
    """Builds the Lightning trainer with its loggers, callbacks and strategy.

    `first` and `last` come before and after the callbacks of the config. Callbacks that save
    checkpoints run after all of these.
    """
    callbacks = [*first, *build_all(cfg.get("callbacks")), *last]
    if not cfg.trainer.get("enable_progress_bar", True):
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    loggers = steady(build_all(cfg.get("logger")))
    with ending_runs(loggers):
        trainer: Trainer = build(cfg.trainer)(
            strategy=build(cfg.strategy),
            logger=loggers,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
        )
    return trainer


def gpu_check(cfg: DictConfig) -> None:
    """Stops a GPU run on a machine with too few GPUs, before anything is read.

    Raises:
        ValueError: `trainer.accelerator` or `trainer.devices` ask for GPUs that are not there.
    """
    if cfg.trainer.get("accelerator") not in ("gpu", "cuda"):
        return
    found, wanted = torch.cuda.device_count(), cfg.trainer.get("devices")
    if not found:
        raise ValueError(
            f"trainer.accelerator: {cfg.trainer.accelerator}, but torch {torch.__version__} sees "
            "no GPU on this machine: trainer=cpu trains without one"
        )
    if isinstance(wanted, int) and wanted > found:
        raise ValueError(f"trainer.devices: {wanted} GPUs are asked for, {found} found")
