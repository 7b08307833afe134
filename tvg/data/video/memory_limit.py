"""Limits the memory of a decoding process, whatever file it decodes."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

_WORDS = ("allocate memory", "out of memory", "bad_alloc")  # in error messages of libraries


_limit_mib: int | None = None  # of this process


def limit_memory(memory_mib: int | None) -> None:
    """Limits this process to `memory_mib` more than its present memory; None sets no limit.

    Allocations beyond the limit fail. The limit covers private memory (RLIMIT_DATA), not mapped
    files. Linux only; elsewhere it has no effect.
    """
    global _limit_mib
    status = Path("/proc/self/status")
    if memory_mib is None or not status.exists():
        return
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    present = 2**10 * int(fields["VmData"].split()[0])
    limit = present + memory_mib * 2**20
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or limit < most:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
        _limit_mib = memory_mib


def memory_problem(error: BaseException) -> str | None:
    """Returns a problem text if the error means that the memory limit was exceeded, or None."""
    cause: BaseException | None = error
    while cause is not None and _limit_mib is not None:
        text = str(cause).lower()
        is_told = isinstance(cause, MemoryError) or any(word in text for word in _WORDS)
        if is_told or getattr(cause, "errno", None) == errno.ENOMEM:
            return (
                f"takes more than {_limit_mib} MiB of memory to decode "
                f"(data.decoder.limits.memory_mib); expected smaller frames, or a higher limit"
            )
        cause = cause.__cause__
    return None
