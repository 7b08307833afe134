"""Writes checkpoints atomically, verifies their checksums, and chooses the one to resume from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from tvg.core.writing import disk_errors, whole_file
from tvg.training.checkpoint_file import BrokenCheckpoint, ChecksumWriter, check_checkpoint
from tvg.training.checkpoint_folder import CHECKPOINTS, checkpoints_of, newest_intact, step_of

log = logging.getLogger(__name__)

_KEYS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams a checkpoint to a temporary file next to the target, then renames it.

    A kill or a full disk never leaves a partial checkpoint: the previous one is kept until the new
    one is complete. A failed write does not stop training. The error is reported and kept in
    `failure`, and saving is tried again at the next saving step.
    `tvg.training.checkpoint_saving.save_last` raises the error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: OSError | None = None  # error of the last save; None: it succeeded

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        self.failure = None
        try:
            _write(checkpoint, Path(path))
        except OSError as error:
            # If only this rank raised, the other ranks would wait for it.
            self.failure = error
            has_former = bool(checkpoints_of(Path(path).parent))
            kept = "the previous checkpoint is kept" if has_former else "there is none yet"
            rank_zero_warn(
                f"no checkpoint was saved: {error.filename}: {error.strerror}; {kept}; "
                "saving is tried again at the next saving step"
            )

    def after_save(self, action: Callable[[], None]) -> None:
        """Calls `action` when the last checkpoint is complete; never if its write failed."""
        if self.failure is None:
            action()

    def wait(self) -> None:
        """Waits until the last checkpoint is written; here, it always is."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads a training checkpoint.

        Raises:
            ValueError: the file is empty, truncated, altered or incomplete; the message names it.
        """
        check_checkpoint(Path(path))
        try:
            with disk_errors(path):
                found = torch.load(path, map_location=map_location, weights_only=weights_only)
        except OSError:
            raise
        except Exception as error:  # torch defines no exception type for this
            problem = str(error).split("\n")[0]
            raise BrokenCheckpoint(Path(path), f"cannot be read ({problem})") from error
        missing = [key for key in _KEYS if not isinstance(found, dict) or key not in found]
        if missing:
            raise BrokenCheckpoint(Path(path), f"is not a training checkpoint: no {missing[0]}")
        return dict(found)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        writer = ChecksumWriter(file)
        try:
            torch.save(checkpoint, cast(IO[bytes], writer))
        except Exception:
            if writer.error is not None:  # torch raises another error when it closes the archive
                raise writer.error from None
            raise
        writer.finish()


def resume_path(resume: str | bool | None, run_dir: Path) -> Path | None:
    """Returns the checkpoint to resume from; None to start a new run.

    The log names the chosen checkpoint, and every damaged one that is newer.

    Args:
        resume: None or False starts a new run; True resumes the newest intact checkpoint of the
            run; "auto" does the same if there is any checkpoint, and otherwise starts a new run; a
            path names a checkpoint.
        run_dir: the run's folder.

    Raises:
        ValueError: there is no checkpoint, or all of them are empty, truncated or altered, or the
            named one is; or it is a DeepSpeed folder of another run. Also if the run folder already
            contains a checkpoint, and `resume` is not set or names another run's checkpoint (this
            would mix two runs).
    """
    known = checkpoints_of(run_dir / CHECKPOINTS)
    if resume is True and not known:
        raise ValueError(
            f"resume: {run_dir} holds no checkpoint (in {run_dir / CHECKPOINTS}) to resume from; "
            "resume=auto starts a new run in this case"
        )
    if resume in (True, "auto"):
        return _newest(run_dir / CHECKPOINTS) if known else None
    if resume in (None, False):
        if known:
            raise ValueError(
                f"run_dir: {run_dir} already holds a run ({known[0]}); continue it with "
                "resume=true, or choose another run_dir"
            )
        return None
    path = Path(str(resume))
    if not path.exists():
        raise ValueError(f"resume: no such checkpoint: {path}")
    is_own = run_dir.resolve() in path.resolve().parents
    if path.is_dir() and not is_own:
        raise ValueError(
            f"resume: {path} is a folder, as DeepSpeed's checkpoints are; DeepSpeed reads them as "
            "pickles, which can run code: only this run's checkpoint is accepted (resume=true)"
        )
    if known and not is_own:
        raise ValueError(
            f"run_dir: {run_dir} already holds a run ({known[0]}), and resume={path} belongs to "
            "another run: choose another run_dir"
        )
    if path.is_file():
        try:
            check_checkpoint(path)
        except BrokenCheckpoint as error:
            raise ValueError(f"resume: {error}") from error
    return path


def _newest(folder: Path) -> Path:
    """Returns the newest intact checkpoint of a folder that has checkpoints."""
    path, damaged = newest_intact(folder)
    if path is None:
        raise ValueError(f"resume: {damaged[0]}") from damaged[0]
    for error in damaged:
        log.warning("resume: %s: %s; it is not used", error.path, error.problem)
    step = step_of(path)
    log.info("resuming from %s%s", path, "" if step is None else f" (step {step})")
    return path
