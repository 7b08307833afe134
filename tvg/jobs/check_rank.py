"""Inspects one process: its machine, its device, and the folders that a run would write."""

from __future__ import annotations

import os
import platform
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tvg.callbacks.run_record import package_versions, source_revision

GIB = 2**30
MIB = 2**20
_SHM = Path("/dev/shm")
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_CGROUP_USES = (
    Path("/sys/fs/cgroup/memory.current"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder that a run writes; sizes in bytes."""

    name: str
    path: str
    free: int
    write_s: float | None  # seconds to write and flush the test file; None: not tested here
    error: str | None  # why it cannot be written


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The findings of one process; sizes in bytes. It is sent to the first rank."""

    rank: int
    host: str
    device: str  # name of the GPU, or the processor's architecture
    device_id: str | None  # unique id of the GPU; None: no GPU
    gpu_free: int | None
    gpu_total: int | None
    num_cpus: int
    memory_free: int  # of the host, or of the container if it has less
    shm_total: int | None  # size of /dev/shm; None: there is none
    versions: dict[str, str | None]
    folders: list[Folder] = field(default_factory=list)


def inspect_rank(
    *, rank: int, device: torch.device, folders: dict[str, Path], write_mib: int, writes: bool
) -> Rank:
    """Inspects this process.

    Args:
        rank: number of this process among all.
        device: its device.
        folders: name -> folder to inspect.
        write_mib: size of the test file.
        writes: write test files; one process per node does.
    """
    is_gpu = device.type == "cuda"
    free, total = torch.cuda.mem_get_info(device) if is_gpu else (None, None)
    properties = torch.cuda.get_device_properties(device) if is_gpu else None
    return Rank(
        rank=rank,
        host=platform.node(),
        device=torch.cuda.get_device_name(device) if is_gpu else platform.machine(),
        device_id=str(getattr(properties, "uuid", device)) if is_gpu else None,
        gpu_free=free,
        gpu_total=total,
        num_cpus=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_free=free_memory(),
        shm_total=shutil.disk_usage(_SHM).total if _SHM.is_dir() else None,
        versions=_versions(is_gpu=is_gpu),
        folders=[
            inspect_folder(name, path, rank=rank, write_mib=write_mib if writes else None)
            for name, path in folders.items()
        ],
    )


def _versions(*, is_gpu: bool) -> dict[str, str | None]:
    source = source_revision()
    found = {**package_versions(), "source": source["commit"]}
    if source["is_dirty"]:
        found["source"] = f"{source['commit']} with changes"
    if is_gpu:
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def free_memory() -> int:
    """Returns the free host memory in bytes; in a container, at most what its limit leaves."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found = int(line.split()[1]) * 1024
    for limit, use in zip(_CGROUP_LIMITS, _CGROUP_USES, strict=True):
        with suppress(OSError, ValueError):  # "max": no limit
            found = min(found, max(int(limit.read_text()) - int(use.read_text()), 0))
    return found


def inspect_folder(name: str, path: Path, *, rank: int, write_mib: int | None) -> Folder:
    """Measures the free space of a folder and the time to write a file into it.

    Folders that are missing are created for the test and removed afterwards.

    Args:
        name: config key of the folder.
        path: the folder.
        rank: number of this process, for the name of the file.
        write_mib: size of the file; None: write none.
    """
    exists = next(parent for parent in (path, *path.parents) if parent.exists())
    write_s, error = None, None
    if write_mib is not None:
        made = [parent for parent in (path, *path.parents) if not parent.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_s = _time_to_write(path / f".tvg_check_{platform.node()}_{rank}", write_mib)
        except OSError as problem:
            error = problem.strerror or str(problem)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
    free = shutil.disk_usage(exists).free
    return Folder(name=name, path=str(path.absolute()), free=free, write_s=write_s, error=error)


def _time_to_write(file: Path, mib: int) -> float:
    """Returns the seconds to write and flush random bytes, which no disk can compress."""
    block = os.urandom(MIB)
    try:
        begin = time.perf_counter()
        with file.open("wb") as stream:
            for _ in range(mib):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        return time.perf_counter() - begin
    finally:
        with suppress(OSError):
            file.unlink()
