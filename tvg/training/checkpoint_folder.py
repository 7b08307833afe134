"""Names, order and links of the checkpoints in a run's folder.

Every checkpoint is named after its optimizer step, such as `step_00000050.ckpt`. `last.ckpt` and
`best.ckpt` are links to two of them. Only the names with steps decide which checkpoint is newest,
so a missing or outdated link does no harm.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from tvg.core.writing import unfinished_path
from tvg.training.checkpoint_file import BrokenCheckpoint, check_checkpoint

CHECKPOINTS = "checkpoints"  # subfolder of a run; also named in conf/callbacks/checkpoint.yaml
LAST, BEST = "last.ckpt", "best.ckpt"
_NAME = re.compile(r"step_([0-9]{8,})\.ckpt")
log = logging.getLogger(__name__)


def checkpoint_name(step: int) -> str:
    """Returns the name of the checkpoint that is saved after `step` optimizer steps."""
    return f"step_{step:08d}.ckpt"


def step_of(path: Path) -> int | None:
    """Returns the step in a checkpoint's name, also through a link; None for other names."""
    found = _NAME.fullmatch(path.name) or _NAME.fullmatch(path.resolve().name)
    return None if found is None else int(found[1])


def checkpoints_of(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, the newest first.

    A `last.ckpt` that is no link is the only checkpoint of an older version of tvg. It is older
    than all named checkpoints, because the first of them replaces it.
    """
    steps = _by_step(folder)
    found = [steps[step] for step in sorted(steps, reverse=True)]
    last = folder / LAST
    return [*found, last] if last.exists() and not last.is_symlink() else found


def newest_intact(folder: Path) -> tuple[Path | None, list[BrokenCheckpoint]]:
    """Returns the newest intact checkpoint, and the errors of the newer, damaged ones.

    Checkpoints that are folders (sharded states) have no checksum and count as intact.
    """
    damaged = []
    for path in checkpoints_of(folder):
        try:
            if path.is_file():
                check_checkpoint(path)
        except BrokenCheckpoint as error:
            damaged.append(error)
        else:
            return path, damaged
    return None, damaged


def tidy(folder: Path, *, newest: int, keep_last: int, best: int | None) -> None:
    """Updates the links after a save, then removes the checkpoints that are not kept.

    Kept are the `keep_last` newest checkpoints up to step `newest`, and the best one. Checkpoints
    of later steps are removed, too: they belong to a run that was since continued from an earlier
    checkpoint.

    Args:
        folder: folder of the checkpoints.
        newest: step of the checkpoint that was just saved.
        keep_last: number of newest checkpoints to keep, at least 1.
        best: step of the best checkpoint; None if no best one is kept.

    Raises:
        OSError: a checkpoint cannot be removed.
    """
    _link(folder / LAST, checkpoint_name(newest))
    steps = _by_step(folder)
    if best in steps:
        _link(folder / BEST, checkpoint_name(best))
    kept = set(sorted((step for step in steps if step <= newest), reverse=True)[:keep_last])
    # If the best checkpoint could not be written, the link names the best one on the disk.
    linked = step_of(folder / BEST) if best is not None else None
    for step, path in steps.items():
        if step not in kept and step != linked:
            _remove(path)


def _by_step(folder: Path) -> dict[int, Path]:
    found = {path: _NAME.fullmatch(path.name) for path in folder.glob("step_*.ckpt")}
    return {int(match[1]): path for path, match in found.items() if match is not None}


def _link(path: Path, target: str) -> None:
    """Makes `path` a relative link to `target`; replaces another link, a file or a folder."""
    if path.is_symlink() and os.readlink(path) == target:
        return
    if path.is_dir() and not path.is_symlink():  # DeepSpeed's checkpoint of an older version
        _remove(path)
    temporary = unfinished_path(path)
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target)
    except OSError as error:  # some file systems have no links
        log.warning("%s: cannot be linked to %s (%s)", path, target, error.strerror)
        return
    os.replace(temporary, path)


def _remove(path: Path) -> None:
    """Removes a checkpoint; a kill leaves no incomplete folder under its name."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    leaving = unfinished_path(path)
    shutil.rmtree(leaving, ignore_errors=True)
    path.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)
