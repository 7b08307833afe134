"""Tests that only the parent can stop a worker process, and that workers end with the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tvg.core.worker_process import WORKERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs sigtimedwait")
ORPHAN = """
import os, signal, time
from tvg.core.worker_process import WORKERS
if __name__ == "__main__":
    worker = WORKERS.Process(target=time.sleep, args=(60,))
    worker.start()
    while os.getpgid(worker.pid) != worker.pid:
        time.sleep(0.01)
    print(worker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def by_another_process(number: int, pid: int) -> None:
    subprocess.run([sys.executable, "-c", f"import os; os.kill({pid}, {number})"], check=True)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return True


def test_worker_accepts_signals_only_from_its_parent() -> None:
    worker = WORKERS.Process(target=time.sleep, args=(60,))
    worker.start()
    pid = worker.pid
    assert pid is not None
    by_another_process(signal.SIGTERM, pid)  # while the worker starts
    until(lambda: os.getpgid(pid) == pid)
    by_another_process(signal.SIGINT, pid)
    by_another_process(signal.SIGTERM, pid)
    worker.join(0.5)
    assert worker.is_alive()
    os.kill(pid, signal.SIGTERM)  # multiprocessing does this to daemons at exit
    worker.join(30)
    assert worker.exitcode == 0


def test_worker_can_be_terminated_while_it_starts() -> None:
    worker = WORKERS.Process(target=time.sleep, args=(60,))
    worker.start()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == -signal.SIGKILL


def test_starting_a_worker_keeps_the_signal_mask() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    worker = WORKERS.Process(target=time.sleep, args=(0,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    done = subprocess.run(
        [sys.executable, tmp_path / "orphan.py"], stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -signal.SIGKILL
    until(lambda: has_ended(int(done.stdout)))


TRACKED = """
import signal
from multiprocessing import resource_tracker
from pathlib import Path

from tvg.core.worker_process import WORKERS

made = getattr(WORKERS, {method!r})()
(tracker,) = Path("/proc/self/task").glob("*/children")
status = Path(f"/proc/{{tracker.read_text().split()[0]}}/status").read_text()
blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
assert blocked >> (signal.SIGUSR1 - 1) & 1, status
"""


@pytest.mark.parametrize("method", ["Event", "Queue", "SimpleQueue"])
def test_resource_tracker_survives_the_warning_of_a_scheduler(method):
    done = subprocess.run(
        [sys.executable, "-c", TRACKED.format(method=method)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
