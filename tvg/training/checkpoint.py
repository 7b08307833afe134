"""Writes checkpoints atomically and verifies their checksums when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from tvg.core.writing import disk_errors, whole_file
from tvg.training.checkpoint_file import BrokenCheckpoint, ChecksumWriter, check_checkpoint

CHECKPOINTS = "checkpoints"  # subfolder of a run; also named in conf/callbacks/checkpoint.yaml
LAST = "last.ckpt"
_KEYS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams a checkpoint to a temporary file next to the target, then renames it.

    A kill or a full disk never leaves a partial checkpoint: the previous one is kept until the new
    one is complete. A failed write does not stop training. The error is reported and kept in
    `failure`, and saving is tried again at the next saving step. `save_last` raises the error.
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
            kept = "the previous checkpoint is kept" if Path(path).exists() else "there is none yet"
            rank_zero_warn(
                f"no checkpoint was saved: {error.filename}: {error.strerror}; {kept}; "
                "saving is tried again at the next saving step"
            )

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


def save_last(trainer: Trainer, path: Path) -> None:
    """Saves a checkpoint on all ranks; every rank must call this.

    Raises:
        OSError: the checkpoint could not be written; raised on every rank.
    """
    trainer.save_checkpoint(path)
    io = trainer.strategy.checkpoint_io
    error = io.failure if isinstance(io, AtomicCheckpointIO) else None
    found = None if error is None else (error.errno, error.strerror, str(error.filename))
    found = trainer.strategy.broadcast(found)
    if found is not None:
        number, text, name = found
        advice = "free disk space, then continue with the same command and resume=true"
        raise OSError(number, f"{text}; {advice}" if path.exists() else text, name)


def resume_path(resume: str | bool | None, run_dir: Path) -> Path | None:
    """Returns the checkpoint to resume from; None to start a new run.

    Args:
        resume: None or False starts a new run; True resumes the run's last checkpoint; "auto" does
            the same if there is one, and otherwise starts a new run; a path names a checkpoint.
        run_dir: the run's folder.

    Raises:
        ValueError: the checkpoint does not exist, is empty, truncated or altered, or is a DeepSpeed
            folder of another run. Also if the run folder already contains a checkpoint, and
            `resume` is not set or names another run's checkpoint (this would mix two runs).
    """
    last = run_dir / CHECKPOINTS / LAST
    if resume is True and not last.exists():
        raise ValueError(
            f"resume: {run_dir} holds no checkpoint ({last}) to resume from; resume=auto "
            "starts a new run in this case"
        )
    if resume in (True, "auto"):
        return _checked(last) if last.exists() else None
    if resume in (None, False):
        if last.exists():
            raise ValueError(
                f"run_dir: {run_dir} already holds a run ({last}); continue it with resume=true, "
                "or choose another run_dir"
            )
        return None
    path = Path(str(resume))
    if not path.exists():
        raise ValueError(f"resume: no such checkpoint: {path}")
    if path.is_dir() and run_dir.resolve() not in path.resolve().parents:
        raise ValueError(
            f"resume: {path} is a folder, as DeepSpeed's checkpoints are; DeepSpeed reads them as "
            "pickles, which can run code: only this run's checkpoint is accepted (resume=true)"
        )
    if last.exists() and run_dir.resolve() not in path.resolve().parents:
        raise ValueError(
            f"run_dir: {run_dir} already holds a run ({last}), and resume={path} belongs to "
            "another run: choose another run_dir"
        )
    return _checked(path)


def _checked(path: Path) -> Path:
    """Returns `path` after verifying a file's checksum; folders (sharded states) have none."""
    if path.is_file():
        try:
            check_checkpoint(path)
        except BrokenCheckpoint as error:
            raise ValueError(f"resume: {error}") from error
    return path
