"""Worker processes that only their parent can stop, and that end when it has ended.

A signal for a job often reaches each of its processes: a terminal and `timeout` signal the process
group, Slurm every process of a step. A worker that dies of it before the main process has finished
its step takes the step with it. (torch raises "DataLoader worker ... is killed by signal" in the
middle of whatever the main process does.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing import context, parent_process, resource_tracker

from tvg.core.interruption import SIGNALS

_LOOK_S = 1.0  # how often a worker looks whether its parent lives


class WorkerProcess(context.SpawnProcess):
    """A spawned process that ignores SIGINT, and SIGTERM unless its parent sends it."""

    def start(self) -> None:
        """Starts it with both signals blocked, in every thread that its imports will start."""
        resource_tracker.ensure_running()  # its own start would unblock them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def terminate(self) -> None:
        """Ends it by SIGKILL: while it starts, it takes no other signal."""
        self.kill()

    def run(self) -> None:
        os.setpgid(0, 0)
        if sys.platform == "linux":  # others have no sigtimedwait, and no Slurm
            parent = parent_process()
            assert parent is not None
            assert parent.pid is not None
            threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        super().run()


class WorkerContext(context.SpawnContext):
    """Spawned workers, for any pool or loader that takes a context of `multiprocessing`."""

    Process = WorkerProcess


WORKERS = WorkerContext()


def _obey(parent: int) -> None:
    """Ends this process as soon as its parent says so or has ended, whatever else it does."""
    assert sys.platform == "linux"
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], _LOOK_S)
        if received is not None and received.si_pid == parent:
            os._exit(0)  # as torch's own handler does
    os._exit(1)
