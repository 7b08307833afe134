"""Decides which settings of a training run may change when it is resumed.

| key | when a run is resumed |
|---|---|
| trainer.max_steps, max_epochs, max_time | applied; the schedule spans the new length |
| loggers, callbacks (except sample_filtering), progress, validation interval | applied |
| data workers, folders of caches, moved files of equal content, test split | applied |
| micro-batches, gradient checkpointing, offloading, accelerator | applied; equal up to rounding |
| model, data, prompt, rewards, objective, schedule, seed, all other keys | refused by name |
"""

from __future__ import annotations

import fnmatch
import importlib.util
from collections.abc import Mapping
from typing import Any

from tvg.config.identity import Identity, differences

MAY_CHANGE = (
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    "trainer.accelerator",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches",
    "trainer.num_sanity_val_steps",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "data.eval_batch_size",
    "data.decoder.*",  # decoders give the same frames
    "data.template_limits.*",
    "model.gradient_checkpointing",
    "objective.micro_batch_size",
    "objective.micro_batch_completions",
    "objective.reference_offload",
    "objective.reference_dtype",  # the same log-probabilities
    "objective.preflight*",
)


def may_change(key: str) -> bool:
    """Returns whether a resumed run may have another value at a dotted key."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in MAY_CHANGE)


def refuse_changes(before: Mapping[str, Any], now: Identity, *, where: str) -> None:
    """Refuses to resume a run with settings that a resumed run cannot change.

    Args:
        before: `Identity.decides` of the run to resume.
        now: identity of the run that resumes it.
        where: the folder or checkpoint, for the error message.

    Raises:
        ValueError: such settings differ; the message names the keys, with both values.
    """
    found = differences(before, now.decides, may_change=may_change)
    if not found:
        return
    advice = "restore them, or start a new run under another name"
    if former := _former_classes(before):
        advice = (
            f"the run was started by an older version of tvg ({former[0]} was renamed): "
            "finish it with that version, or start a new run from its weights "
            "(model.path=RUN_FOLDER/export)"
        )
    raise ValueError(
        f"resume: {where} was trained with other settings, which a resumed run cannot change: "
        f"{found}; {advice}"
    )


def _former_classes(settings: Mapping[str, Any]) -> list[str]:
    """Returns the targets in dotted settings that this version of tvg does not have."""
    named = [value for key, value in settings.items() if key.endswith("._target_")]
    return [str(name) for name in named if str(name).startswith("tvg.") and not _exists(str(name))]


def _exists(target: str) -> bool:
    module = target.rpartition(".")[0]
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
