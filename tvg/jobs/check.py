"""Inspects the processes and machines of a training before hours are spent on it."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from tvg.config.hydra_folders import remove_empty
from tvg.core.launched import is_first_of_node, launched_layout
from tvg.jobs.check_findings import (
    Network,
    bus_gb_s,
    by_host,
    find_problems,
    mib,
    rank_numbers,
    write_speed,
)
from tvg.jobs.check_rank import GIB, Rank, inspect_rank
from tvg.report.console import make_console
from tvg.training.quiet_logs import quiet_libraries

T = TypeVar("T")
_NUM_CLOCKS = 3  # readings of the clocks; the best one has the least delay
_NUM_REDUCES = 3


def check(cfg: DictConfig, console: Console | None = None) -> None:
    """Inspects all ranks and prints a table on the first one.

    Raises:
        ValueError: something is wrong, on the first rank, with one line per problem. Or the
            processes cannot be started or do not reach each other.
    """
    quiet_libraries()
    fabric = _start(cfg)
    folders = {str(name): Path(str(path)) for name, path in cfg.folders.items()}
    mine = inspect_rank(
        rank=fabric.global_rank,
        device=fabric.device,
        folders=folders,
        write_mib=int(cfg.write_mib),
        writes=is_first_of_node(),
    )
    ranks = _gathered(fabric, mine)
    network = Network(
        backend=dist.get_backend() if fabric.world_size > 1 else None,
        clocks_s=_clocks(fabric),
        sees_run_dir=_sees(fabric, folders["run_dir"]),
        **_all_reduce(fabric, mib(cfg.reduce_mib)),
    )
    if fabric.world_size > 1:
        fabric.barrier()
        dist.destroy_process_group()
    if fabric.global_rank != 0:
        return
    remove_empty([Path(str(cfg.run_dir))])  # Hydra has created it, on some rank
    limits: Any = OmegaConf.to_container(cfg.limits)
    problems = find_problems(ranks, network, limits, write_mib=int(cfg.write_mib))
    _print(ranks, network, cfg, console or make_console())
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ValueError(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found:{lines}")


def _start(cfg: DictConfig) -> Fabric:
    per_node, nodes = launched_layout()
    devices = cfg.devices if cfg.devices != "auto" else per_node
    num_nodes = cfg.num_nodes if cfg.num_nodes != "auto" else nodes or 1
    is_cpu = cfg.accelerator == "cpu" or not torch.cuda.is_available()
    if cfg.accelerator == "gpu" and is_cpu:
        raise ValueError(f"accelerator: gpu, but torch {torch.__version__} sees no GPU here")
    if devices is None:
        devices = 1 if is_cpu else torch.cuda.device_count()
    strategy: Any = "auto"
    if int(devices) * int(num_nodes) > 1:
        strategy = DDPStrategy(
            process_group_backend=cfg.backend, timeout=timedelta(seconds=float(cfg.timeout_s))
        )
    try:
        fabric = Fabric(
            accelerator="cpu" if is_cpu else "gpu",
            devices=int(devices),
            num_nodes=int(num_nodes),
            strategy=strategy,
        )
    except RuntimeError as error:  # settings of Slurm that Lightning does not accept
        raise ValueError(f"devices: {' '.join(str(error).split())}") from error
    try:
        fabric.launch()
        fabric.barrier()
    except (RuntimeError, dist.DistError) as error:
        text = str(error).strip().split("\n")[0]
        raise ValueError(
            f"timeout_s: the {int(devices) * int(num_nodes)} processes did not reach each other "
            f"within {cfg.timeout_s} s: {text}"
        ) from error
    return fabric


def _gathered(fabric: Fabric, mine: T) -> list[T]:
    if fabric.world_size == 1:
        return [mine]
    found: list[T] = [mine] * fabric.world_size
    dist.all_gather_object(found, mine)
    return found


def _clocks(fabric: Fabric) -> list[float]:
    """Returns each rank's clock minus the first rank's; the readings with the least spread."""
    readings = []
    for _ in range(_NUM_CLOCKS):
        fabric.barrier()
        readings.append(_gathered(fabric, time.time()))
    best = min(readings, key=lambda times: max(times) - min(times))
    return [found - best[0] for found in best]


def _sees(fabric: Fabric, run_dir: Path) -> list[bool]:
    """Returns for each rank whether it sees a new file of the first rank in the run folder."""
    if fabric.world_size == 1:
        return [True]
    name = f".tvg_check_{os.getpid()}"
    path = run_dir / _gathered(fabric, name)[0]
    could_write = True
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    if fabric.global_rank == 0:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:  # reported by the test of writing
            could_write = False
    could_write = _gathered(fabric, could_write)[0]
    found = _gathered(fabric, path.exists() or not could_write)
    if fabric.global_rank == 0:
        path.unlink(missing_ok=True)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
    return found


def _all_reduce(fabric: Fabric, num_bytes: int) -> dict[str, Any]:
    """Times an all-reduce of float32 numbers, after one that starts the connections."""
    if fabric.world_size == 1:
        return {"reduce_s": None, "is_exact": True}
    times = []
    expected = float(fabric.world_size * (fabric.world_size + 1) // 2)
    is_exact = True
    for _ in range(1 + _NUM_REDUCES):
        numbers = torch.full((num_bytes // 4,), fabric.global_rank + 1.0, device=fabric.device)
        fabric.barrier()
        begin = _now(fabric.device)
        dist.all_reduce(numbers)
        times.append(_now(fabric.device) - begin)
        is_exact = is_exact and bool((numbers == expected).all())
    slowest = max(_gathered(fabric, min(times[1:])))
    return {"reduce_s": slowest, "is_exact": all(_gathered(fabric, is_exact))}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _print(ranks: list[Rank], network: Network, cfg: DictConfig, console: Console) -> None:
    table = Table(title=f"{len(ranks)} processes on {len(by_host(ranks))} hosts")
    columns = ["host", "ranks", "device", "GPU memory free", "host memory free", "/dev/shm"]
    columns += ["clock", *(f"{folder.name} free, written" for folder in ranks[0].folders)]
    for column in columns:
        table.add_column(column)
    for host, some in by_host(ranks).items():
        first = some[0]
        shown = [
            host,
            rank_numbers(some),
            f"{len(some)} x {first.device}, {first.num_cpus} CPUs",
            _gpu_text(some),
            f"{min(rank.memory_free for rank in some) / GIB:.1f} GiB",
            "none" if first.shm_total is None else f"{first.shm_total / GIB:.1f} GiB",
            f"{network.clocks_s[first.rank]:+.3f} s",
        ]
        for folder in first.folders:
            speed = write_speed(folder.write_s, int(cfg.write_mib))
            text = "not written" if speed is None else f"{speed:.0f} MiB/s"
            shown.append(f"{folder.free / GIB:.0f} GiB, {text}")
        table.add_row(*shown)
    console.print(table)
    versions = ", ".join(f"{name} {v}" for name, v in ranks[0].versions.items() if v is not None)
    console.print(f"versions of rank 0: {versions}")
    if network.reduce_s is None:
        console.print(
            "one process: nothing was communicated (torchrun, srun or devices=N start more)"
        )
    else:
        rate = bus_gb_s(network.reduce_s, mib(cfg.reduce_mib), len(ranks))
        console.print(
            f"{network.backend}: all-reduce of {cfg.reduce_mib} MiB in "
            f"{network.reduce_s * 1000:.1f} ms ({rate:.2f} GB/s on the bus)"
        )


def _gpu_text(ranks: list[Rank]) -> str:
    free = [rank.gpu_free for rank in ranks if rank.gpu_free is not None]
    total = [rank.gpu_total for rank in ranks if rank.gpu_total is not None]
    return f"{min(free) / GIB:.1f} of {min(total) / GIB:.1f} GiB" if free and total else "no GPU"
