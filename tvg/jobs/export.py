"""Writes a Hugging Face folder from a checkpoint of a training run.

The run's `config.yaml` is read as plain values. Nothing that it names is imported: the model is
built from known classes only.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig

from tvg.callbacks.run_start import NOTES
from tvg.config.record_file import RECORD_FILE
from tvg.core.text_files import output_folder_check
from tvg.model.adapters import Adapter, LoRA, no_adapter
from tvg.model.exporting import export_checkpoint
from tvg.model.loading import ModelSource
from tvg.model.policy import Policy
from tvg.training.checkpoint_file import BrokenCheckpoint, check_checkpoint
from tvg.training.checkpoint_folder import (
    BEST,
    CHECKPOINTS,
    checkpoint_name,
    checkpoints_of,
    newest_intact,
    step_of,
)
from tvg.training.fsdp2 import META_FILE
from tvg.training.quiet_logs import quiet_libraries
from tvg.training.trained_state import fingerprint

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
EXPORTS = "exports"  # subfolder of a run
_SOURCE = f"{ModelSource.__module__}.{ModelSource.__name__}"
_ADAPTERS: dict[str, Callable[..., Adapter]] = {
    f"{no_adapter.__module__}.{no_adapter.__name__}": lambda: no_adapter,
    f"{LoRA.__module__}.{LoRA.__name__}": LoRA,
}
_TRUE_PRECISIONS = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
_PREFIX = "policy."


def export(cfg: DictConfig) -> Path:
    """Writes the export; returns its folder.

    For the last checkpoint of a run in one process or with DDP, the files are equal to those of the
    run's own export.

    Raises:
        ValueError: the run, the checkpoint or the initial weights are missing or do not fit, or the
            folder exists; the message names the key.
    """
    quiet_libraries()
    run_dir = Path(str(cfg.run_dir))
    recorded = _recorded_config(run_dir)
    checkpoint = _checkpoint(cfg.checkpoint, run_dir)
    folder = _target(cfg.folder, run_dir, checkpoint)
    state = _read(checkpoint, folder)
    source = _source(recorded, None if cfg.model_path is None else str(cfg.model_path))
    processor = source.load_processor()
    policy = source.load_policy(processor)
    precision = str((recorded.get("trainer") or {}).get("precision"))
    _load(policy, state, checkpoint, dtype=_TRUE_PRECISIONS.get(precision))
    export_checkpoint(policy, processor, folder, notes=_notes(state, run_dir))
    log.info("exported %s to %s", checkpoint, folder)
    return folder


def _recorded_config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise ValueError(
            f"run_dir: {run_dir} holds no {CONFIG_FILE}: expected the folder of a run of tvg-train "
            "(callbacks=[run_record] writes this file)"
        )
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"run_dir: {path} cannot be read ({reason})") from error
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise ValueError(f"run_dir: {path}: expected the config of a training, with a model")
    return found


def _checkpoint(wanted: Any, run_dir: Path) -> Path:
    """Returns the checkpoint that the key `checkpoint` names, after checking it."""
    folder, name = run_dir / CHECKPOINTS, str(wanted)
    if wanted is None:
        newest, damaged = newest_intact(folder)
        for error in damaged:
            log.warning("checkpoint: %s: %s; it is not used", error.path, error.problem)
        if newest is None:
            none = f"{run_dir} holds no checkpoint (in {folder})"
            raise ValueError(f"checkpoint: {damaged[0] if damaged else none}")
        return newest
    if name == "best":
        path = folder / BEST
    else:
        path = folder / checkpoint_name(int(name)) if name.isdecimal() else Path(name)
    if not path.exists():
        there = ", ".join(found.name for found in checkpoints_of(folder)) or "none"
        raise ValueError(f"checkpoint: {path} does not exist; {folder} holds {there}")
    if path.is_dir() and run_dir.resolve() not in path.resolve().parents:
        raise ValueError(
            f"checkpoint: {path} is a folder, as checkpoints of DeepSpeed and FSDP2 are; they are "
            f"read as pickles, which can run code: only a checkpoint in {run_dir} is accepted"
        )
    try:
        if path.is_file():
            check_checkpoint(path)
    except BrokenCheckpoint as error:
        raise ValueError(f"checkpoint: {error}") from error
    return path


def _target(folder: str | None, run_dir: Path, checkpoint: Path) -> Path:
    step = step_of(checkpoint)
    name = checkpoint.stem if step is None else Path(checkpoint_name(step)).stem
    target = run_dir / EXPORTS / name if folder is None else Path(str(folder))
    if target.exists() or target.is_symlink():
        raise ValueError(
            f"folder: {target} exists: remove it, or choose another one with folder=..."
        )
    try:
        output_folder_check(target.parent)
    except ValueError as error:
        raise ValueError(f"folder: {error}") from error
    return target


def _read(checkpoint: Path, target: Path) -> dict[str, Any]:
    """Reads a checkpoint; tensors of a file are read only when they are used."""
    if checkpoint.is_file():
        return dict(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True))
    if (checkpoint / META_FILE).is_file():
        return _read_shards(checkpoint)
    from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as work:
        return dict(
            convert_zero_checkpoint_to_fp32_state_dict(
                checkpoint, Path(work) / "weights.pt", tag="checkpoint"
            )
        )


def _read_shards(checkpoint: Path) -> dict[str, Any]:
    """Reads the weights, but not the optimizer's states, of a folder written by strategy=fsdp2."""
    from torch.distributed import checkpoint as dcp

    found = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    names = [key.removeprefix("state_dict.") for key in found if key.startswith("state_dict.")]
    weights = {}
    for name in names:
        tensor: Any = found[f"state_dict.{name}"]
        weights[name] = torch.empty(tensor.size, dtype=tensor.properties.dtype)
    dcp.load({"state_dict": weights}, checkpoint_id=checkpoint, no_dist=True)
    rest = torch.load(checkpoint / META_FILE, map_location="cpu", weights_only=True)
    return {**rest, "state_dict": weights}


def _source(recorded: Mapping[str, Any], model_path: str | None) -> ModelSource:
    """Builds the source of the initial weights from the recorded values."""
    values = dict(recorded["model"])
    target, adapter = values.pop("_target_", None), dict(values.pop("adapter", None) or {})
    if target != _SOURCE:
        raise ValueError(f"run_dir: {CONFIG_FILE}: model: expected {_SOURCE}, got {target}")
    adapter.pop("_partial_", None)
    name = adapter.pop("_target_", None)
    if name not in _ADAPTERS:
        raise ValueError(
            f"run_dir: {CONFIG_FILE}: model.adapter: expected one of {', '.join(_ADAPTERS)}, got "
            f"{name}: an adapter of your own cannot be exported"
        )
    create = values.pop("create", None) or {}
    path = model_path or values.pop("path", None) or create.get("folder")
    values.pop("path", None)
    if path is None or not Path(str(path)).is_dir():
        raise ValueError(
            f"model_path: the run started from the weights in {path}, which is no folder: set "
            "model_path=FOLDER to their current place"
        )
    try:
        made = _ADAPTERS[name](**adapter)
        return ModelSource(path=str(path), create=None, adapter=made, **values)
    except TypeError as error:
        raise ValueError(
            f"run_dir: {CONFIG_FILE}: model: written by another version of tvg ({error})"
        ) from error


def _load(
    policy: Policy, state: Mapping[str, Any], checkpoint: Path, *, dtype: torch.dtype | None
) -> None:
    """Loads the trained weights of a checkpoint into the policy that the run started from."""
    now, before = fingerprint(policy), state.get("initial_fingerprint")
    if before != now:
        raise ValueError(
            f"model_path: {checkpoint} belongs to a run that started from other weights "
            f"(fingerprint {before}, here {now})"
        )
    if dtype is not None:
        policy.to(dtype)
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in state.get("state_dict", {}).items()
        if name.startswith(_PREFIX)
    }
    named = policy.named_parameters(remove_duplicate=False)
    missing = sorted({name for name, p in named if p.requires_grad} - weights.keys())
    if missing:
        raise ValueError(
            f"checkpoint: {checkpoint} lacks {len(missing)} weights that are trained, e.g. "
            f"{missing[0]}"
        )
    policy.load_state_dict(weights, strict=False)


def _notes(state: Mapping[str, Any], run_dir: Path) -> dict[str, str]:
    """Returns the record of prompt and sampling, which an export contains."""
    if NOTES in state:
        return {str(name): str(text) for name, text in state[NOTES].items()}
    former = run_dir / "export" / RECORD_FILE
    if not former.is_file():
        raise ValueError(
            "checkpoint: it was written by an older version of tvg and records no prompt: "
            f"continue the run once, or copy its {RECORD_FILE} to {former}"
        )
    return {RECORD_FILE: former.read_text(encoding="utf-8")}
