"""Writes files atomically and folders without half-written results.

Errors name the disk that is full. `remove_leftovers` cleans up after killed processes.
"""

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
_STALE_S = 24 * 3600.0  # age at which another machine's unfinished file counts as a leftover
_UNFINISHED = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<process>\d+)\.(?P<kind>tmp|tmp-journal|old)"
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries in Rust and C++ raise other exception types; the message contains the system's text.
_FULL_TEXTS = {
    "no space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
}


def unfinished_path(path: Path) -> Path:
    """Returns the temporary path beside `path` for this process: `.NAME.HOST.PROCESS.tmp`."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")


@contextlib.contextmanager
def whole_folder(folder: str | Path, *, replaces: bool = True) -> Iterator[Path]:
    """Yields an empty temporary folder and renames it to `folder` if the block succeeds.

    If the block fails or is interrupted, the previous `folder` is kept. If it succeeds, the
    previous folder is first moved aside. If the process is killed before the new folder is in
    place, `remove_leftovers` restores the previous one.

    Args:
        folder: the folder to write.
        replaces: False keeps an existing folder, such as one that another process wrote meanwhile.

    Raises:
        OSError: the disk is full or cannot be written. The message names
            `folder` and, if the disk is full, the disk.
    """
    folder = Path(folder)
    temporary = unfinished_path(folder)
    former = temporary.with_suffix(".old")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process with the same id
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
    """Yields a temporary file path and renames the file to `path` if the block succeeds.

    If the block fails or is interrupted, the previous file at `path` is kept.

    Args:
        path: the file to write; its folder is created.
        sync: flush to disk, so that a power cut after the return does not lose the file.

    Raises:
        OSError: the disk is full or cannot be written. The message names
            `path` and, if the disk is full, the disk.
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
            # If the disk failed, removal may fail too; report the first error.
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def disk_errors(target: str | Path) -> Iterator[None]:
    """Makes disk errors name the file being written and, if the disk is full, the disk.

    Raises:
        OSError: with `target` as its file name. The errno is that of the error, or the errno of
            the full-disk text that the error contains.
    """
    try:
        yield
    except Exception as error:
        named = _named(error, Path(target))
        if named is None:
            raise
        raise named from error


def _named(error: Exception, target: Path) -> OSError | None:
    """Returns the error as an OSError of `target`; None if it is not about writing `target`."""
    if not isinstance(error, OSError):
        text = str(error).lower()
        found = next((number for part, number in _FULL_TEXTS.items() if part in text), None)
        return None if found is None else OSError(found, _full_text(found, target), str(target))
    number = error.errno
    if number is None:
        return None
    # Another file, such as one in the folder for temporary files, may be on another disk.
    where = target if error.filename is None else Path(os.fsdecode(error.filename))
    if number in _FULL:
        return OSError(number, _full_text(number, where), str(target))
    is_ours = error.filename is None or where == unfinished_path(target)
    return OSError(number, os.strerror(number), str(target)) if is_ours else None


def _full_text(number: int, path: Path) -> str:
    """Returns a message with the full disk and its free space; for EFBIG, with the size limits."""
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
    """Calls `remove_leftovers` on a run folder and on its direct subfolders."""
    folders = sorted(path for path in Path(run_dir).glob("*/") if not path.is_symlink())
    return [path for folder in (run_dir, *folders) for path in remove_leftovers(folder)]


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Removes unfinished files and folders that killed processes left directly in a folder.

    Two kinds of files are kept: files that a running process of this machine is writing, and files
    that another machine wrote within the last day. If a process was killed between moving the
    previous folder away and moving the new folder in, the previous folder is restored.

    Returns:
        The removed files and folders, sorted.
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
    """Returns whether the process that wrote an unfinished file has ended."""
    try:
        written_s = path.lstat().st_mtime
    except FileNotFoundError:
        return False
    if host != _host():  # a process on another machine cannot be checked
        return time.time() - written_s > _STALE_S
    if process == os.getpid():  # in a container, every start has the same process id
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
