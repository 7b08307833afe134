"""Compares the findings of all ranks with the limits and with each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvg.jobs.check_rank import GIB, MIB, Rank


@dataclass(frozen=True, kw_only=True)
class Network:
    """What all ranks measured together.

    Attributes:
        backend: nccl or gloo; None: one process, nothing to communicate.
        clocks_s: each rank's clock minus the first rank's, in seconds.
        sees_run_dir: for each rank, whether it sees a file that the first rank has written.
        reduce_s: seconds of one all-reduce; None: one process.
        is_exact: the sum that the all-reduce returned is right.
    """

    backend: str | None
    clocks_s: Sequence[float]
    sees_run_dir: Sequence[bool]
    reduce_s: float | None
    is_exact: bool


def find_problems(
    ranks: Sequence[Rank], network: Network, limits: Mapping[str, Any], *, write_mib: int
) -> list[str]:
    """Returns one line per problem; empty if there is none.

    Args:
        ranks: findings of every rank.
        network: what they measured together.
        limits: `limits` of conf/check.yaml.
        write_mib: size of the test file.
    """
    return [
        *_network_problems(ranks, network, limits),
        *_version_problems(ranks),
        *_device_problems(ranks, limits),
        *_memory_problems(ranks, limits),
        *_folder_problems(ranks, limits, write_mib),
    ]


def _network_problems(
    ranks: Sequence[Rank], network: Network, limits: Mapping[str, Any]
) -> Iterator[str]:
    if network.backend == "gloo" and any(rank.device_id for rank in ranks):
        yield "backend: gloo on GPUs copies every gradient through the host: use backend=nccl"
    if not network.is_exact:
        yield (
            f"backend: the all-reduce of {network.backend} returned a wrong sum: check the drivers "
            "and NCCL's transports (NCCL_DEBUG=INFO)"
        )
    limit, spread = limits.get("clock_s"), max(network.clocks_s) - min(network.clocks_s)
    if limit is not None and spread > limit:
        late = ranks[list(network.clocks_s).index(max(network.clocks_s))]
        yield (
            f"limits.clock_s: clocks differ by {spread:.1f} s (host {late.host} is ahead), "
            f"allowed are {limit:g} s: synchronise them (NTP)"
        )
    blind = [rank for rank, sees in zip(ranks, network.sees_run_dir, strict=True) if not sees]
    if blind:
        yield (
            f"folders.run_dir: {_where(blind)} does not see the files of rank 0: use a folder on a "
            "disk that all nodes share"
        )


def _version_problems(ranks: Sequence[Rank]) -> Iterator[str]:
    names = dict.fromkeys(name for rank in ranks for name in rank.versions)
    for name in names:
        found: dict[str | None, list[Rank]] = {}
        for rank in ranks:
            found.setdefault(rank.versions.get(name), []).append(rank)
        if len(found) > 1:
            told = "; ".join(f"{version} on {_where(some)}" for version, some in found.items())
            yield f"versions: {name} differs: {told}"


def _device_problems(ranks: Sequence[Rank], limits: Mapping[str, Any]) -> Iterator[str]:
    devices: dict[str, list[Rank]] = {}
    for rank in ranks:
        devices.setdefault(rank.device, []).append(rank)
    if len(devices) > 1:
        told = "; ".join(f"{device} on {_where(some)}" for device, some in devices.items())
        yield f"devices: ranks have different devices, and the slowest sets the pace: {told}"
    users: dict[tuple[str, str], list[Rank]] = {}
    for rank in ranks:
        if rank.device_id is not None:
            users.setdefault((rank.host, rank.device_id), []).append(rank)
    for some in users.values():
        if len(some) > 1:
            numbers = ", ".join(str(rank.rank) for rank in some)
            yield f"devices: ranks {numbers} of {some[0].host} use the same GPU"
    limit = limits.get("gpu_used_gib")
    for rank in ranks:
        if limit is None or rank.gpu_free is None or rank.gpu_total is None:
            continue
        used = (rank.gpu_total - rank.gpu_free) / GIB
        if used > limit:
            yield (
                f"limits.gpu_used_gib: {used:.1f} GiB of the GPU of rank {rank.rank} ({rank.host}) "
                f"are in use, allowed are {limit:g}: end other programs (nvidia-smi)"
            )


def _memory_problems(ranks: Sequence[Rank], limits: Mapping[str, Any]) -> Iterator[str]:
    for host, some in by_host(ranks).items():
        for key, found, what in (
            ("shm_gib", some[0].shm_total, "/dev/shm has"),
            ("memory_gib", min(rank.memory_free for rank in some), "free host memory is"),
        ):
            limit = limits.get(key)
            if limit is None or found is None or found >= limit * len(some) * GIB:
                continue
            yield (
                f"limits.{key}: {what} {found / GIB:.2f} GiB on {host}, needed are {limit:g} for "
                f"each of its {len(some)} processes"
            )


def _folder_problems(
    ranks: Sequence[Rank], limits: Mapping[str, Any], write_mib: int
) -> Iterator[str]:
    for some in by_host(ranks).values():
        tested = next((r for r in some if any(f.write_s or f.error for f in r.folders)), some[0])
        for folder in tested.folders:
            where = f"folders.{folder.name}: {folder.path} on {tested.host}"
            if folder.error is not None:
                yield f"{where} cannot be written: {folder.error}"
                continue
            free = limits.get("free_gib")
            if free is not None and folder.free < free * GIB:
                yield (
                    f"limits.free_gib: {folder.path} on {tested.host} has {folder.free / GIB:.1f} "
                    f"GiB left, needed are {free:g}"
                )
            speed, least = write_speed(folder.write_s, write_mib), limits.get("write_mib_s")
            if speed is not None and least is not None and speed < least:
                yield (
                    f"limits.write_mib_s: {folder.path} on {tested.host} takes {speed:.0f} MiB/s, "
                    f"needed are {least:g}"
                )


def write_speed(write_s: float | None, write_mib: int) -> float | None:
    """Returns MiB per second; None if nothing was written."""
    return None if write_s is None else write_mib / max(write_s, 1e-9)


def bus_gb_s(reduce_s: float, num_bytes: int, num_ranks: int) -> float:
    """Returns the bus bandwidth of a ring all-reduce in GB/s, as nccl-tests defines it."""
    return 2 * (num_ranks - 1) / num_ranks * num_bytes / max(reduce_s, 1e-12) / 1e9


def by_host(ranks: Iterable[Rank]) -> dict[str, list[Rank]]:
    """Returns host -> its ranks, in the order of the ranks."""
    found: dict[str, list[Rank]] = {}
    for rank in ranks:
        found.setdefault(rank.host, []).append(rank)
    return found


def rank_numbers(ranks: Sequence[Rank]) -> str:
    """Returns rank numbers such as `0-7` or `3`."""
    numbers = [rank.rank for rank in ranks]
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _where(ranks: Sequence[Rank]) -> str:
    return "; ".join(
        f"{host} (rank{'s' if len(some) > 1 else ''} {rank_numbers(some)})"
        for host, some in by_host(ranks).items()
    )


def mib(number: float) -> int:
    """Returns bytes of a number of MiB."""
    return int(number * MIB)
