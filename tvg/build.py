"""Builds the objects of a run from a composed config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from omegaconf import DictConfig

from tvg.config import build
from tvg.data.annotations import Split
from tvg.model.families import Family
from tvg.model.loading import ModelSource
from tvg.model.policy import Policy
from tvg.reward.weighted import WeightedReward
from tvg.rollout.engine import RolloutEngine
from tvg.task.protocol import Task
from tvg.tracking.run_status import ending_runs
from tvg.tracking.steady import steady
from tvg.training.checkpoint import AtomicCheckpointIO
from tvg.training.datamodule_base import PromptDataModule


@dataclass(frozen=True, kw_only=True)
class RunComponents:
    """The objects that training, evaluation and prediction share, built from the config."""

    processor: Any
    policy: Policy
    task: Task
    rollout: RolloutEngine
    data: PromptDataModule


def build_components(cfg: DictConfig, *, split: Split) -> RunComponents:
    """Builds task, sampler, data and model.

    Annotations are read before the weights are loaded. Loading is slow, and bad annotations should
    be reported before it.
    """
    forward_by = cfg.policy.forward if "policy" in cfg else "shared_prefix"
    task = build(cfg.prompt)
    source: ModelSource = build(cfg.model)
    family = source.load_family()
    processor = source.load_processor()
    rollout: RolloutEngine = build(cfg.rollout)
    data = build_data(
        cfg, task=task, processor=processor, family=family, keep_frames=rollout.needs_frames
    )
    data.prepare_data()
    data.examples(split)
    return RunComponents(
        processor=processor,
        policy=source.load_policy(processor, forward_by=forward_by),
        task=task,
        rollout=rollout,
        data=data,
    )


def build_data(
    cfg: DictConfig,
    *,
    task: Task | None = None,
    processor: Any | None = None,
    family: Family | None = None,
    keep_frames: bool = False,
) -> PromptDataModule:
    """Builds the data module; it needs task, processor and family to make batches."""
    data: PromptDataModule = build(cfg.data)(
        task=task, processor=processor, family=family, seed=cfg.seed, keep_frames=keep_frames
    )
    return data


def build_module(cfg: DictConfig, parts: RunComponents) -> LightningModule:
    """Builds the objective with the components that its signature names."""
    module: LightningModule = offer(
        build(cfg.objective),
        policy=parts.policy,
        tokenizer=parts.processor.tokenizer,
        task=parts.task,
        rollout=parts.rollout,
        reward=build_reward(cfg.reward)
        if cfg.get("reward")
        else None,  # reward=[] for objective=sft
        scoring_fps=cfg.policy.get("scoring_fps"),
        seed=cfg.seed,
    )
    return module


def offer(factory: Callable[..., Any], **parts: Any) -> Any:
    """Calls `factory` with the parts that its signature names."""
    wanted = inspect.signature(factory).parameters
    return factory(**{name: part for name, part in parts.items() if name in wanted})


def build_reward(cfg: DictConfig) -> WeightedReward:
    """Builds the weighted sum of the rewards that the config names."""
    return WeightedReward(
        rewards={str(name): build(node.reward) for name, node in cfg.items()},
        weights={str(name): float(node.weight) for name, node in cfg.items()},
    )


def build_all(nodes: DictConfig | None) -> list[Any]:
    """Builds all entries of a group, except those that are null."""
    return [build(node) for node in (nodes or {}).values() if node is not None]


def automatic_strategy() -> str:
    """Returns "auto", which lets Lightning choose the strategy; the target of strategy=auto."""
    return "auto"


def build_trainer(
    cfg: DictConfig, *, first: Sequence[Callback] = (), last: Sequence[Callback] = ()
) -> Trainer:
    """Builds the Lightning trainer with its loggers, callbacks and strategy.

    `first` run before the callbacks of the config, and `last` after them. Callbacks that save
    checkpoints run after all others.
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
