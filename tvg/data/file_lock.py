"""A lock on a folder or file that one process at a time may write; it dies with its process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(lock_file: Path, what: str) -> Iterator[None]:
    """Holds a lock file, on which the system keeps no lock longer than its process lives.

    Args:
        lock_file: is made, and removed at the end.
        what: the key and the path that the lock protects.

    Raises:
        ValueError: another process holds it, or it cannot be written; begins with `what`.
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
        lock_file.unlink(missing_ok=True)  # while it is held: a waiter notices
        lock.release()


def _holder(lock_file: Path) -> str:
    try:
        told = lock_file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f" ({told})" if told else ""
