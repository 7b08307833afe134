"""Reads precision, strategy and checkpoints of a run from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tvg.config.rules.machine import is_deepspeed
from tvg.config.values import Config, number, value
from tvg.estimate.activations import FLOAT, Precision
from tvg.estimate.job import Engine, Sharding
from tvg.model.loading import DTYPES
from tvg.model.shape import Parameters

REDUCE_BUCKET = 200_000_000  # numbers; default of Lightning's DeepSpeedStrategy
LIVE_PARAMETERS = 1_000_000_000  # numbers; default of DeepSpeed's stage3_max_live_parameters


def engine_of(settings: Config) -> Engine:
    """Returns what distributes the states of the run."""
    if is_deepspeed(settings):
        return "deepspeed"
    name = str(value(settings, "strategy._target_", "")).rpartition(".")[2]
    is_fsdp2 = "fsdp2" in name.lower() or name == "ModelParallelStrategy"
    return "fsdp2" if is_fsdp2 else "torch"


def is_half(settings: Config) -> bool:
    """Returns whether the run computes in half precision."""
    return str(value(settings, "trainer.precision")).startswith(("bf16", "16"))


def is_cast(settings: Config) -> bool:
    """Returns whether all weights, trained or frozen, are cast to half precision for the run."""
    is_true = str(value(settings, "trainer.precision")).endswith("-true")
    return is_half(settings) and (is_deepspeed(settings) or is_true)


def precision_of(settings: Config) -> Precision:
    """Returns the bytes per stored weight, per computed number, and per number between layers."""
    weight = DTYPES[value(settings, "model.dtype")].itemsize
    if is_cast(settings):
        return Precision(weight=2, compute=2, stream=2)
    compute = 2 if is_half(settings) else weight
    # FSDP2 gathers all weights in half precision, the embeddings and norms, too.
    stream = compute if engine_of(settings) == "fsdp2" else weight
    return Precision(weight=weight, compute=compute, stream=stream)


def trained_bytes(settings: Config, precision: Precision, params: Parameters) -> int:
    """Returns bytes per trained weight; with adapters, trained weights are float32 unless cast."""
    return FLOAT if params.adapters and not is_cast(settings) else precision.weight


def sharding_of(settings: Config, params: Parameters) -> Sharding:
    """Returns how devices share the states of the run."""
    per_node, engine = _devices_per_node(settings), engine_of(settings)
    bucket = int(number(settings, "strategy.reduce_bucket_size") or REDUCE_BUCKET)
    live = int(number(settings, "strategy.config.stage3_max_live_parameters") or LIVE_PARAMETERS)
    if value(settings, "trainer.accelerator") == "cpu":  # unused memory takes no pages of a host
        bucket = min(bucket, params.trained)
    stage = {"deepspeed": int(number(settings, "strategy.stage") or 2), "fsdp2": 3, "torch": 0}
    return Sharding(
        devices=per_node * int(number(settings, "trainer.num_nodes") or 1),
        devices_per_node=per_node,
        engine=engine,
        stage=stage[engine],
        offload_optimizer=value(settings, "strategy.offload_optimizer") is True,
        offload_parameters=value(settings, "strategy.offload_parameters") is True,
        bucket=bucket,
        live=live,
        reduces_once=value(settings, "strategy.sync_each_micro_batch") is not True,
    )


def _devices_per_node(settings: Config) -> int:
    devices = value(settings, "trainer.devices", 1)
    if isinstance(devices, list):
        return len(devices)
    if str(devices).isdigit():
        return max(int(devices), 1)
    return max(torch.cuda.device_count(), 1)  # auto, -1: all devices


def kept_checkpoints(settings: Config) -> int:
    """Returns the largest number of checkpoints on disk, including one that is being written."""
    entries: Mapping[str, Any] = value(settings, "callbacks") or {}
    found = [entry for entry in entries.values() if isinstance(entry, Mapping)]
    kept = 0
    for entry in found:
        last = number(entry, "keep_last")
        last = number(entry, "save_top_k") if last is None else last
        if last is not None:
            kept += max(int(last), 1) + (value(entry, "keep_best") is not None)
    return kept + 1
