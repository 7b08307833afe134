"""Claims a run folder for one job and one process; removes a new folder if the job fails early."""

from __future__ import annotations

import logging
import logging.handlers
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tvg.config.file_lock import locked
from tvg.config.hydra_folders import remove_empty
from tvg.config.identity import IDENTITY_FILE, Identity, differences, identity_of, read_identity
from tvg.config.nodes import plain
from tvg.config.outputs import WRITTEN, Place, check_outputs, single_files
from tvg.config.resume_rules import refuse_changes
from tvg.config.resume_table import may_change
from tvg.core.launched import is_first_rank
from tvg.core.printable import PrintableFormatter
from tvg.core.text_files import output_folder_check, write_json

LOCK_FILE = ".lock"
_MANY = 10**6  # log records kept until the run begins
_LINE = "[%(asctime)s][%(name)s][%(levelname)s] %(message)s"


class RunFolder:
    """A claimed run folder.

    Attributes:
        path: the folder.
        identity: identity of the job that claims it.
        has_begun: whether the run has written something worth keeping.
    """

    def __init__(self, path: Path, identity: Identity, logger: _HeldLog | None) -> None:
        self.path = path
        self.identity = identity
        self.has_begun = False
        self._log = logger

    def begin(self) -> None:
        """Keeps the folder for this job: after this call, a failure no longer removes it."""
        if self.has_begun:
            return
        self.has_begun = True
        if self._log is None:  # not the first rank
            return
        self.write_identity()
        self._log.release()

    def write_identity(self) -> None:
        """Writes `identity.json`, with the command line as information for the user."""
        write_json(self.path / IDENTITY_FILE, {**self.identity.as_json(), "command_line": sys.argv})


@contextmanager
def claimed(cfg: DictConfig, command: str) -> Iterator[RunFolder]:
    """Claims the run folder of a job, so that no other process can claim it.

    If the command fails before `RunFolder.begin`, its files are removed, and so is the folder if it
    is new. Ranks other than the first claim nothing. The lock is released when its process ends.

    Args:
        cfg: the resolved config.
        command: "train", "evaluate", "predict", "prepare" or "demo".

    Raises:
        ValueError: another process holds the folder, the folder belongs to another job or cannot
            be written, or an output is an input (ConfigError).
    """
    run_dir = Path(str(cfg.run_dir))
    identity = identity_of(command, cfg)
    if not is_first_rank():
        yield RunFolder(run_dir, identity, None)
        return
    values = _values(cfg)
    check_outputs(command, values)
    output_folder_check(run_dir)
    _refuse_other_job(run_dir, identity, cfg.get("resume"))
    with ExitStack() as stack:
        made = _missing_folders(run_dir)
        kept: set[Path] = set()
        run_dir.mkdir(parents=True, exist_ok=True)
        folder: RunFolder | None = None
        try:
            stack.enter_context(locked(run_dir / LOCK_FILE, f"run_dir: {run_dir}"))
            # Again, because another process may have used the folder in the meantime.
            _refuse_other_job(run_dir, identity, cfg.get("resume"))
            files = dict.fromkeys(single_files(command, values))
            # Files whose paths a config key sets are kept, even if the command fails later.
            kept = _entries(run_dir) - {run_dir / LOCK_FILE}
            kept |= {place.path.resolve() for place in files}
            log = stack.enter_context(_held_log(run_dir / f"{command}.log"))
            folder = RunFolder(run_dir, identity, log)
            if read_identity(run_dir) is None:  # identifies the job if this process is killed
                folder.write_identity()
            for place in files:
                stack.enter_context(_locked_file(place))
            yield folder
            folder.begin()
        finally:
            if folder is not None and not folder.has_begun:
                _remove_new(run_dir, kept)
            if folder is None or not folder.has_begun:
                remove_empty(made)


def _values(cfg: DictConfig) -> dict[str, Any]:
    values = {}
    for key in map(str, cfg):
        if key != "callbacks":
            with suppress(ValueError):
                values[key] = plain(cfg[key])
    return values


@contextmanager
def _locked_file(place: Place) -> Iterator[None]:
    """Locks a file that will be written outside the run folder."""
    key, path = place
    made = _missing_folders(path.parent)
    try:
        output_folder_check(path.parent).mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    lock_file = path.with_name(f".{path.name}.lock")
    try:
        with locked(lock_file, f"{key}: {path}"):
            yield
    finally:
        remove_empty(made)


def _refuse_other_job(run_dir: Path, identity: Identity, resume: Any) -> None:
    """Refuses a job whose run folder holds the files of another job.

    Raises:
        ValueError: the folder belongs to another job; the message names the keys that differ.
    """
    held = read_identity(run_dir)
    if held is None:
        used = [name for name in WRITTEN[identity.command] if (run_dir / name).exists()]
        if used:
            raise ValueError(
                f"run_dir: {run_dir} already holds a run that records no settings ({used[0]}, but "
                f"no {IDENTITY_FILE}): choose another run_dir or name"
            )
        return
    if held.command != identity.command:
        raise ValueError(
            f"run_dir: {run_dir} already holds a run of another command ({held.command}): choose "
            "another run_dir or name"
        )
    if identity.command == "train" and resume not in (None, False):
        refuse_changes(held.decides, identity, where=str(run_dir))
    found = differences(
        held.decides,
        identity.decides,
        may_change=may_change if identity.command == "train" else lambda key: False,
    )
    if found:
        raise ValueError(
            f"run_dir: {run_dir} already holds a run with other settings: {found}; choose another "
            "run_dir or name"
        )


def check_resumed(checkpoint: Path, identity: Identity) -> None:
    """Compares a run with the one whose checkpoint it resumes, before anything is loaded.

    A checkpoint that was moved out of its run folder is compared later, when it is loaded.

    Raises:
        ValueError: as `refuse_changes`.
    """
    held = read_identity(checkpoint.parent.parent)
    if held is not None and held.command == "train":
        refuse_changes(held.decides, identity, where=str(checkpoint))


class _HeldLog:
    """A log file that is written only after the run begins."""

    def __init__(self, path: Path) -> None:
        self._file = logging.FileHandler(path, encoding="utf-8", delay=True)
        self._file.setFormatter(PrintableFormatter(_LINE))
        self.handler = logging.handlers.MemoryHandler(
            _MANY, flushLevel=logging.CRITICAL + 1, target=self._file, flushOnClose=False
        )

    def release(self) -> None:
        """Writes the held records; later records are written immediately."""
        self.handler.flush()
        self.handler.capacity = 1

    def close(self) -> None:
        self.handler.close()
        self._file.close()


@contextmanager
def _held_log(path: Path) -> Iterator[_HeldLog]:
    held = _HeldLog(path)
    logging.getLogger().addHandler(held.handler)
    try:
        yield held
    finally:
        logging.getLogger().removeHandler(held.handler)
        held.close()


def _missing_folders(folder: Path) -> list[Path]:
    """Returns those of a folder and its parents that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _entries(folder: Path) -> set[Path]:
    """Returns the contents of a run folder and of its loggers' folders."""
    with suppress(OSError):
        return {*folder.iterdir(), *folder.glob("csv/*"), *folder.glob("tensorboard/*")}
    return set()


def _remove_new(run_dir: Path, kept: set[Path]) -> None:
    """Removes the files that a run has added to its folder."""
    for path in sorted(_entries(run_dir) - kept, reverse=True):
        if path.resolve() in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
