"""Runs commands as real processes that can start together and pause at a defined call.

This file is also the script of such a process. It imports everything, prints "ready", waits for a
line on stdin, and runs the command. To pause, it creates the file `paused` and waits until the
file `go_on` exists.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

Process = subprocess.Popen[str]
LIMIT_S = 200


def small_training(world: Path, checkpoint: Path) -> list[str]:
    """Returns overrides of a GRPO training that takes seconds on a few generated clips."""
    return [
        "data=custom",
        f"data.video_dir={world / 'videos'}",
        f"data.train_file={world / 'train.json'}",
        f"data.val_file={world / 'val.json'}",
        "data/cache=none",
        f"model.path={checkpoint}",
        "prompt=short",
        "reward=[format,iou]",
        "data.batch_size=2",
        "objective.group_size=2",
        "objective.preflight=null",
        "rollout.max_new_tokens=4",
        "trainer=cpu",
    ]


def start(name: str, words: Sequence[str], folder: Path, pause: str = "") -> Process:
    """Starts a process for `tvg-<name>` in `folder` and waits until it is ready.

    Args:
        name: the command, such as "train".
        words: arguments of the command.
        folder: working directory.
        pause: where to pause, as "module:attribute:number_of_call"; "": never.
    """
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, __file__, name, pause, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def run(*processes: Process) -> None:
    """Lets ready processes run their commands."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def until_paused(process: Process, folder: Path) -> None:
    """Waits until a process reaches its pause."""
    deadline = time.monotonic() + LIMIT_S
    while not (folder / "paused").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def first_to_end(*processes: Process) -> Process:
    """Waits until one of several processes has ended, and returns it."""
    deadline = time.monotonic() + LIMIT_S
    while all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return next(process for process in processes if process.poll() is not None)


def finish(process: Process) -> tuple[int, str, str]:
    """Waits for a process; returns exit code, stdout and stderr."""
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def leftovers(folder: Path) -> list[Path]:
    """Returns lock files and temporary files below a folder."""
    return [p for p in folder.rglob(".*") if p.suffix in (".lock", ".tmp", ".old", ".new")]


def completes(name: str, words: Sequence[str], folder: Path) -> None:
    """Checks that a command succeeds and leaves no lock or temporary file."""
    process = start(name, words, folder)
    try:
        run(process)
        code, _, err = finish(process)
        assert code == 0, err
        assert not leftovers(folder)
    finally:
        kill(process)


def descendants(pid: int) -> list[int]:
    """Returns the ids of all descendants of a process, children before their parents."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid for child in found for pid in (*descendants(child), child)]


def are_gone(pids: Sequence[int]) -> bool:
    """Returns whether all processes end within 20 seconds."""
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and _lives(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _lives(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return False


def kill(process: Process) -> None:
    """Kills a process and its descendants, if a failed test left it running."""
    for pid in (*descendants(process.pid), process.pid):
        if process.poll() is None:
            os.kill(pid, signal.SIGKILL)


def _pausing(where: str) -> None:
    module, names, call = where.split(":")
    *outer, name = names.split(".")
    owner = functools.reduce(getattr, outer, importlib.import_module(module))
    function = getattr(owner, name)
    calls = 0

    @functools.wraps(function)
    def paused(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == int(call):
            Path("paused").touch()
            while not Path("go_on").exists():
                time.sleep(0.02)
        return function(*arguments, **named)

    setattr(owner, name, paused)


def _main() -> None:
    name, pause, *words = sys.argv[1:]
    sys.argv = [f"tvg-{name}", *words]
    command = importlib.import_module(f"tvg.cli.{name}")
    importlib.import_module("tvg.jobs.demo" if name == "train" else f"tvg.jobs.{name}")
    if pause:
        _pausing(pause)
    print("ready", flush=True)
    sys.stdin.readline()
    command.main()


if __name__ == "__main__":
    _main()
