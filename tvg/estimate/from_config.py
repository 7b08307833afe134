"""Implements `tvg-train train.estimate=true`, which estimates memory without weights or videos."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from tvg.config import build
from tvg.config.nodes import at, plain, raw
from tvg.config.values import number, value
from tvg.estimate.activations import FLOAT
from tvg.estimate.distribution import (
    engine_of,
    is_half,
    kept_checkpoints,
    precision_of,
    sharding_of,
    trained_bytes,
)
from tvg.estimate.job import Job, optimizer_cost
from tvg.estimate.memory import estimate
from tvg.estimate.meta import largest_trained, meta_model, wide_reference
from tvg.estimate.text import GIB, host_lines, make_table, run_size, verdict
from tvg.estimate.workload import largest_prompt, training_list
from tvg.model.families import family_of
from tvg.model.loading import DTYPES, ModelSource
from tvg.model.shape import ModelShape, count_parameters, shape_of
from tvg.report.console import make_console
from tvg.training.quiet_logs import quiet_libraries


def show_estimate(cfg: DictConfig, *, console: Console | None = None) -> None:
    """Prints the estimate of a composed config of `tvg-train`."""
    quiet_libraries()
    console = console or make_console()
    examples = training_list(cfg)
    job = make_job(cfg, clip_s=examples.clip_s)
    lines = estimate(job)
    console.print(make_table(lines, job))
    largest = f"Largest prompt: {job.prompt_tokens:,} tokens; {examples.words}."
    for text in (largest, *run_size(job, examples.num_examples), *host_lines(job, lines)):
        console.print(text, highlight=False)
    memory_gib = cfg.train.device_memory_gib or visible_memory_gib()
    for text in verdict(job, lines, memory_gib=memory_gib):
        console.print(text, highlight=False)


def make_job(cfg: DictConfig, *, clip_s: float | None) -> Job:
    """Builds a job from a config of `tvg-train`; `clip_s` is the longest clip, None if unknown."""
    settings = plain(cfg)
    shape, model, checkpoint = _model(cfg)
    params = count_parameters(model)
    precision, sharding = precision_of(settings), sharding_of(settings, params)
    number_bytes = trained_bytes(settings, precision, params)
    # DeepSpeed's optimizers update float32 copies of all trained weights, also in float32 runs.
    has_masters = sharding.engine == "deepspeed"
    prompt_tokens, patches = largest_prompt(cfg, shape, clip_s, family=family_of(model.config))
    group_size = int(number(settings, "objective.group_size") or 1)
    optimizer = value(settings, "objective.optimizer")
    is_view = value(settings, "strategy.gradient_as_bucket_view") is True
    is_copied = sharding.devices > 1 and sharding.engine == "torch" and not is_view
    is_narrow = value(settings, "objective.reference_dtype") == "bfloat16"
    return Job(
        shape=shape,
        params=params,
        precision=precision,
        is_autocast=is_half(settings) and engine_of(settings) == "torch" and number_bytes > 2,
        trained_bytes=number_bytes,
        has_masters=has_masters,
        optimizer=optimizer_cost(
            str(optimizer["_target_"]),
            optimizer,
            number=FLOAT if has_masters else number_bytes,
        ),
        sharding=sharding,
        gradient_copies=2 if is_copied else 1,
        has_reference=bool(number(settings, "objective.loss.kl_coef")),
        offload_reference=value(settings, "objective.reference_offload") is True,
        reference_bytes=2 if is_narrow else number_bytes,
        wide_reference=wide_reference(model),
        largest_weight=largest_trained(model),
        loaded_bytes=DTYPES[value(settings, "model.dtype")].itemsize,
        gradient_checkpointing=checkpoint.gradient_checkpointing,
        forward=cfg.policy.forward,
        samples_shared=not str(value(settings, "rollout._target_")).endswith(".HFEngine"),
        is_encoded="FeatureCache" in str(value(settings, "data.cache._target_")),
        prompts=cfg.data.batch_size,
        prompts_per_call=value(settings, "rollout.prompts_per_call"),
        group_size=group_size,
        micro_prompts=cfg.objective.micro_batch_size,
        micro_completions=int(number(settings, "objective.micro_batch_completions") or group_size),
        prompt_tokens=prompt_tokens,
        completion_tokens=cfg.rollout.max_new_tokens,
        patches=patches,
        eval_prompts=cfg.data.eval_batch_size,
        eval_tokens=max(cfg.rollout.max_new_tokens, _rating_tokens(settings)),
        saves_frozen=has_masters
        and value(settings, "strategy.exclude_frozen_parameters") is not True,
        kept_checkpoints=kept_checkpoints(settings),
    )


def _rating_tokens(settings: Any) -> int:
    """Returns the longest completion of callbacks that score the training set, or 0."""
    entries = value(settings, "callbacks") or {}
    limits = [number(entry, "max_new_tokens") for entry in entries.values() if entry]
    return int(max((limit or 0 for limit in limits), default=0))


def _model(cfg: DictConfig) -> tuple[ModelShape, Any, ModelSource]:
    """Builds the model; a checkpoint that the config creates is written to a temporary folder."""
    cfg = cfg.copy()
    with tempfile.TemporaryDirectory() as folder:
        if "folder" in (at(raw(cfg.model), "create") or ()):
            cfg.model.create.folder = folder
        source: ModelSource = build(cfg.model)
        model = meta_model(source)
    return shape_of(model.config), model, source


def visible_memory_gib() -> float | None:
    """Returns the total memory of the first GPU in GiB; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory) / GIB
