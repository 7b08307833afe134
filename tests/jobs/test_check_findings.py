"""Tests that each problem of ranks, network, devices, memory and disks is reported once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tvg.jobs.check_findings import Network, bus_gb_s, find_problems, rank_numbers
from tvg.jobs.check_rank import GIB, Folder, Rank, inspect_folder

LIMITS = {
    "clock_s": 2.0,
    "free_gib": 20,
    "write_mib_s": 50,
    "shm_gib": 1,
    "memory_gib": 4,
    "gpu_used_gib": 2,
}
FOLDER = Folder(name="run_dir", path="/runs", free=90 * GIB, write_s=0.1, error=None)


def rank(number: int, **changes) -> Rank:
    host = "a" if number < 2 else "b"
    found = Rank(
        rank=number,
        host=host,
        device="H100",
        device_id=f"gpu-{number}",
        gpu_free=79 * GIB,
        gpu_total=80 * GIB,
        num_cpus=16,
        memory_free=64 * GIB,
        shm_total=8 * GIB,
        versions={"torch": "2.13.0"},
        folders=[FOLDER if number % 2 == 0 else replace(FOLDER, write_s=None)],
    )
    return replace(found, **changes)


RANKS = [rank(number) for number in range(4)]
NETWORK = Network(
    backend="nccl", clocks_s=[0.0] * 4, sees_run_dir=[True] * 4, reduce_s=0.01, is_exact=True
)


def problems(ranks=RANKS, network=NETWORK, limits=LIMITS):
    return find_problems(ranks, network, limits, write_mib=64)


def test_healthy_ranks_have_no_problems():
    assert problems() == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {3: {"versions": {"torch": "2.12.0"}}},
            "versions: torch differs: 2.13.0 on a (ranks 0-1)",
        ),
        ({2: {"device": "A100"}}, "devices: ranks have different devices"),
        ({1: {"device_id": "gpu-0"}}, "devices: ranks 0, 1 of a use the same GPU"),
        ({3: {"gpu_free": 70 * GIB}}, "limits.gpu_used_gib: 10.0 GiB of the GPU of rank 3 (b)"),
        ({2: {"shm_total": GIB}}, "limits.shm_gib: /dev/shm has 1.00 GiB on b, needed are 1 for"),
        ({3: {"memory_free": 7 * GIB}}, "limits.memory_gib: free host memory is 7.00 GiB on b"),
        (
            {0: {"folders": [replace(FOLDER, free=GIB)]}},
            "limits.free_gib: /runs on a has 1.0 GiB left, needed are 20",
        ),
        (
            {2: {"folders": [replace(FOLDER, write_s=6.4)]}},
            "limits.write_mib_s: /runs on b takes 10 MiB/s, needed are 50",
        ),
        (
            {2: {"folders": [replace(FOLDER, write_s=None, error="Read-only file system")]}},
            "folders.run_dir: /runs on b cannot be written: Read-only file system",
        ),
    ],
)
def test_problem_of_a_rank_is_one_line(changed, message):
    ranks = [rank(number, **changed.get(number, {})) for number in range(4)]
    (found,) = problems(ranks)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clocks_s": [0, 0, 5.0, 5.1]},
            "limits.clock_s: clocks differ by 5.1 s (host b is ahead)",
        ),
        ({"backend": "gloo"}, "backend: gloo on GPUs"),
        ({"is_exact": False}, "backend: the all-reduce of nccl returned a wrong sum"),
        (
            {"sees_run_dir": [True, True, False, False]},
            "folders.run_dir: b (ranks 2-3) does not see the files of rank 0",
        ),
    ],
)
def test_problem_of_the_network_is_one_line(change, message):
    (found,) = problems(network=replace(NETWORK, **change))
    assert found.startswith(message)


def test_limits_of_null_are_not_checked():
    ranks = [rank(0, shm_total=0, memory_free=0, gpu_free=0)]
    network = replace(NETWORK, clocks_s=[0.0], sees_run_dir=[True])
    assert problems(ranks, network, dict.fromkeys(LIMITS)) == []


def test_bus_bandwidth_of_a_ring():
    # Each of four ranks sends and receives 2 * 3/4 of 1 GB, in half a second.
    assert bus_gb_s(0.5, 10**9, 4) == pytest.approx(3.0)


def test_rank_numbers_are_ranges_if_consecutive():
    assert rank_numbers([rank(2), rank(3)]) == "2-3"
    assert rank_numbers([rank(0), rank(3)]) == "0, 3"


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    found = inspect_folder("cache", tmp_path / "file" / "cache", rank=0, write_mib=1)
    assert found.error == "Not a directory"
    assert found.write_s is None


def test_inspected_folder_is_left_as_it_was(tmp_path: Path):
    found = inspect_folder("cache", tmp_path / "new" / "cache", rank=0, write_mib=1)
    assert found.error is None
    assert found.write_s is not None
    assert found.free > 0
    assert list(tmp_path.iterdir()) == []
