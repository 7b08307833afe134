"""Worker processes that only their parent can stop, and that exit when their parent exits.

A signal for a job often reaches all of its processes: a terminal and `timeout` signal the process
group, and Slurm signals every process of a step. If a worker died of that signal, the main process
could not finish its optimizer step: torch would raise "DataLoader worker ... is killed by signal".
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing import context, parent_process, queues, resource_tracker, synchronize
from typing import Any

from tvg.core.interruption import SIGNALS

_LOOK_S = 1.0  # interval at which a worker checks that its parent is alive


class WorkerProcess(context.SpawnProcess):
    """A spawned process that ignores SIGINT, and SIGTERM unless its parent sends it."""

    def start(self) -> None:
        """Starts the process with both signals blocked, also in threads started by its imports."""
        _start_tracker()  # starting it later would unblock the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def terminate(self) -> None:
        """Ends the process with SIGKILL, because a starting process blocks the other signals."""
        self.kill()

    def run(self) -> None:
        os.setpgid(0, 0)
        if sys.platform == "linux":  # other platforms have no sigtimedwait, and no Slurm
            parent = parent_process()
            assert parent is not None
            assert parent.pid is not None
            threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        super().run()


class WorkerContext(context.SpawnContext):
    """A `multiprocessing` context that starts `WorkerProcess`, for pools and data loaders.

    Queues and events start Python's resource tracker, a process that must survive the signals.
    """

    Process = WorkerProcess

    def Event(self) -> synchronize.Event:  # noqa: N802 - as in the base class
        _start_tracker()
        return super().Event()

    def Queue(self, maxsize: int = 0) -> queues.Queue[Any]:  # noqa: N802
        _start_tracker()
        return super().Queue(maxsize)

    def SimpleQueue(self) -> queues.SimpleQueue[Any]:  # noqa: N802
        _start_tracker()
        return super().SimpleQueue()


WORKERS = WorkerContext()


def _start_tracker() -> None:
    """Starts the resource tracker with the signals blocked; it ignores only SIGINT and SIGTERM."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey(parent: int) -> None:
    """Exits this process as soon as its parent sends SIGTERM or has ended."""
    assert sys.platform == "linux"
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], _LOOK_S)
        if received is not None and received.si_pid == parent:
            os._exit(0)  # as torch's own handler does
    os._exit(1)
