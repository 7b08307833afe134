"""Measures CPU seconds of commands without tensors: help, config, and command-line mistakes."""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = {
    "help": ["tvg.cli.train", "--help"],
    "config": ["tvg.cli.train", "--cfg", "job"],
    "misspelt key": ["tvg.cli.train", "objective.group_sise=4"],
    "wrong option": ["tvg.cli.train", "model=smal"],
    "missing value": ["tvg.cli.train", "seed=???"],
    "rule": ["tvg.cli.train", "objective.group_size=1"],
    "help of predict": ["tvg.cli.predict", "--help"],
}
PROJECT = Path(__file__).resolve().parents[2]


def cpu_s(words: list[str], folder: str) -> float:
    """Returns the user and system CPU seconds of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"}
    subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder:
        for name, words in CASES.items():
            seconds = [cpu_s(words, folder) for _ in range(repeat)]
            print(f"{name:<16}{statistics.median(seconds):5.2f} CPU-s (median of {repeat})")


if __name__ == "__main__":
    main()
