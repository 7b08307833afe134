"""A limit on the memory of a process that decodes, which a file's claims cannot get round."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

_WORDS = ("allocate memory", "out of memory", "bad_alloc")  # of libraries with errors of their own


_limit_mib: int | None = None  # of this process


def limit_memory(memory_mib: int | None) -> None:
    """Lets allocations of this process fail that exceed by so much what it has now; None: none.

    What counts is memory of its own (the system's RLIMIT_DATA): no files that are mapped. Linux
    only; elsewhere nothing happens.
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
    """Returns what a file did wrong, if an error says that memory ran out under `limit_memory`."""
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
