"""Locks a folder or file, so that only one process at a time writes it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(lock_file: Path, what: str) -> Iterator[None]:
    """Holds the lock of a file. The system releases it when the process ends.

    Args:
        lock_file: the file to lock; created here and removed at the end.
        what: config key and path that the lock protects, for the error message.

    Raises:
        ValueError: another process holds the lock, or the file cannot be written.
    """
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{what} is in use by another process{_holder(lock_file)}: wait until it ends, or "
            "choose another place"
        ) from None
    except OSError as error:
        raise ValueError(f"{what}: cannot lock {lock_file}: {error.strerror}") from error
    with suppress(OSError):
        lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)  # while still locked, so that a waiting process notices
        lock.release()


def _holder(lock_file: Path) -> str:
    try:
        told = lock_file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f" ({told})" if told else ""
