"""Refuses to resume a training run with settings that `tvg.config.resume_table` does not allow."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from tvg.config.identity import Identity, differences
from tvg.config.resume_table import PART_RATES, may_change, row_of


def refuse_changes(before: Mapping[str, Any], now: Identity, *, where: str) -> None:
    """Refuses to resume a run with settings that a resumed run cannot change.

    Args:
        before: `Identity.decides` of the run to resume.
        now: identity of the run that resumes it.
        where: the folder or checkpoint, for the error message.

    Raises:
        ValueError: such settings differ; the message names the keys, with both values, and says
            why they cannot change.
    """
    keeps_groups = _rate_groups(before) == _rate_groups(now.decides)

    def is_free(key: str) -> bool:
        return may_change(key) and (keeps_groups or not key.startswith(PART_RATES))

    found = differences(before, now.decides, may_change=is_free)
    if not found:
        return
    changed = [key for key in changed_keys(before, now.decides) if not is_free(key)]
    rows = {row_of(key).group: row_of(key).why for key in changed}
    reasons = " ".join(f"({group}: {why})" for group, why in rows.items())
    advice = "restore them, or start a new run under another name"
    if former := _former_classes(before):
        advice = (
            f"the run was started by an older version of tvg ({former[0]} was renamed): "
            "finish it with that version, or start a new run from its weights "
            "(model.path=RUN_FOLDER/export)"
        )
    raise ValueError(
        f"resume: {where} was trained with other settings, which a resumed run cannot change: "
        f"{found} {reasons}; {advice}"
    )


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the dotted keys whose values differ, including those that only one has."""
    keys = dict.fromkeys([*before, *now])
    return [key for key in keys if before.get(key) != now.get(key)]


def _rate_groups(settings: Mapping[str, Any]) -> list[int]:
    """Returns for each part the number of its parameter group: equal rates share a group."""
    keys = sorted(key for key in settings if key.startswith(PART_RATES))
    rates = [settings[key] for key in keys]
    numbers = {rate: number for number, rate in enumerate(dict.fromkeys([None, *rates]))}
    return [numbers[rate] for rate in rates]


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
