"""Files that are whole or absent, errors that name the full disk, and what killed writes leave."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_STARTED_S = time.time()
_STALE_S = 24 * 3600.0  # after which an unfinished file of another machine counts as left over
_UNFINISHED = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<process>\d+)\.(?P<kind>tmp|tmp-journal|old)"
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries in Rust and C++ raise errors of their own, with the system's text in them.
_FULL_TEXT = re.compile(
    r"no space left on device|disk quota exceeded|file too large|database or disk is full", re.I
)


def unfinished_path(path: Path) -> Path:
    """Returns the name beside `path` that this process writes to: `.NAME.HOST.PROCESS.tmp`."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")


@contextlib.contextmanager
def whole_folder(folder: str | Path, *, replaces: bool = True) -> Iterator[Path]:
    """Yields an empty folder to fill beside `folder`; takes its place if the block succeeds.

    A failed or interrupted block leaves what was at `folder` before. Of a kill between the two
    renames, `remove_leftovers` puts the former folder back.

    Args:
        folder: to write.
        replaces: False: where another process has written it meanwhile, that one stays.

    Raises:
        OSError: the disk is full or cannot be written; names `folder` and the disk.
    """
    folder = Path(folder)
    temporary = unfinished_path(folder)
    former = temporary.with_suffix(".old")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same number
    with disk_errors(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if folder.exists() and not replaces:
                return
            if folder.exists():
                shutil.rmtree(former, ignore_errors=True)
                folder.rename(former)
            os.replace(temporary, folder)
        finally:
            if former.exists() and not folder.exists():
                former.rename(folder)
            shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Yields the name of a file to write beside `path`, and renames it if the block succeeds.

    A failed or interrupted block leaves what was at `path` before.

    Args:
        path: the file; its folder is made.
        sync: whether a power cut must not lose the file after this returns.

    Raises:
        OSError: the disk is full or cannot be written; names `path` and the disk.
    """
    path = Path(path)
    temporary = unfinished_path(path)
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if sync:
                _sync(temporary)
            os.replace(temporary, path)
            if sync:
                _sync(path.parent)
        finally:
            # Where the disk failed, removing may fail too: the first error is the one to report.
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def disk_errors(target: str | Path) -> Iterator[None]:
    """Makes errors of a disk name the file that was to be written, and the disk if it is full.

    Raises:
        OSError: of the same number, with `target` as its file name.
    """
    try:
        yield
    except Exception as error:
        named = _named(error, Path(target))
        if named is None:
            raise
        raise named from error


def _named(error: Exception, target: Path) -> OSError | None:
    """The error as one of `target`; None where it is of something else."""
    if not isinstance(error, OSError):
        if _FULL_TEXT.search(str(error)) is None:
            return None
        return OSError(errno.ENOSPC, _full_text(errno.ENOSPC, target), str(target))
    number = error.errno
    if number is None:
        return None
    # A file elsewhere, such as one in the folder for temporary files, has a disk of its own.
    where = target if error.filename is None else Path(os.fsdecode(error.filename))
    if number in _FULL:
        return OSError(number, _full_text(number, where), str(target))
    is_ours = error.filename is None or where == unfinished_path(target)
    return OSError(number, os.strerror(number), str(target)) if is_ours else None


def _full_text(number: int, path: Path) -> str:
    """Says which disk is full, and the room on it."""
    if number == errno.EFBIG:
        return f"{os.strerror(number)} for the file system or for `ulimit -f`; it was not written"
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free_mib = shutil.disk_usage(folder).free / 2**20
    mount = folder.resolve()
    while not mount.is_mount() and mount != mount.parent:
        mount = mount.parent
    left = f"the disk of {folder} (mounted at {mount}) has {free_mib:.1f} MiB left"
    return f"{os.strerror(number)}: {left}; the file was not written"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers_of_run(run_dir: str | Path) -> list[Path]:
    """Does `remove_leftovers` in a run folder and in the folders directly in it."""
    folders = sorted(path for path in Path(run_dir).glob("*/") if not path.is_symlink())
    return [path for folder in (run_dir, *folders) for path in remove_leftovers(folder)]


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Removes what killed processes left unfinished in a folder (not below it).

    What a running process of this machine is writing stays, and so does what another machine
    wrote within the last day. A folder that a kill left without its successor is put back.

    Returns:
        The files and folders removed, sorted.
    """
    try:
        entries = list(Path(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    removed = []
    for path in entries:
        found = _UNFINISHED.fullmatch(path.name)
        if found is None or not _is_left_over(path, found["host"], int(found["process"])):
            continue
        former = path.with_name(found["name"])
        if found["kind"] == "old" and not former.exists():
            with contextlib.suppress(OSError):  # another rank was faster
                path.rename(former)
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return sorted(removed)


def _is_left_over(path: Path, host: str, process: int) -> bool:
    """Whether the process that wrote an unfinished file has ended."""
    try:
        written_s = path.lstat().st_mtime
    except FileNotFoundError:
        return False
    if host != _host():  # a process elsewhere cannot be asked
        return time.time() - written_s > _STALE_S
    if process == os.getpid():  # in a container, every start has the same number
        return written_s < _STARTED_S
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _host() -> str:
    return socket.gethostname().replace(".", "-") or "host"
