"""Checkpoints that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

CHECKPOINTS = "checkpoints"  # folder of a run; conf/callbacks/checkpoint.yaml writes there, too
LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a kill never leaves half a checkpoint."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            super().save_checkpoint(checkpoint, temporary, storage_options)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def resume_path(resume: str | bool | None, run_dir: Path) -> Path | None:
    """The checkpoint to go on from.

    Args:
        resume: None or False to start anew; True for the run's own last checkpoint; "auto" for the
            same, but to start anew where there is none yet; else the path of a checkpoint.
        run_dir: the run's folder.

    Raises:
        ValueError: `resume` names a file that does not exist, or the run folder holds a
            checkpoint and `resume` is not set (going on would mix two runs).
    """
    last = run_dir / CHECKPOINTS / LAST
    if resume is True and not last.exists():
        raise ValueError(
            f"resume: {run_dir} holds no checkpoint ({last}) to go on from; resume=auto starts "
            "anew where there is none"
        )
    if resume in (True, "auto"):
        return last if last.exists() else None
    if resume in (None, False):
        if last.exists():
            raise ValueError(
                f"run_dir: {run_dir} already holds a run ({last}); go on with resume=true, "
                "or choose another run_dir"
            )
        return None
    path = Path(str(resume))
    if not path.exists():
        raise ValueError(f"resume: no such checkpoint: {path}")
    return path
